// Chooses kernels for a problem, fills their arguments, and launches them. Templates over the
// transform.
#pragma once

#include <functional>
#include <optional>

#include "cuda/broadcast.h"
#include "cuda/kernels.h"
#include "cuda/partials.h"
#include "cuda/plan.h"
#include "cuda/planar.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

using cuda::Context;
using Index = std::int64_t;

// The planar kernels sum only samples of at least this length: a block needs enough work per
// sample.
inline constexpr Index kMinPlanarSample = 1024;
// This many tiles keep a whole device busy. Problems that would have more use larger tiles.
inline constexpr Index kManyTiles = 512;
// This many threads keep a whole device busy; and the minimal number of elements in a slab.
inline constexpr Index kManyThreads = 262144, kMinSlabElements = 16;

inline Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

// The index of the cotangent of y among a problem's inputs; that of logabsdet follows.
template <class Op>
inline constexpr int kGradYIndex = 1 + Op::kGroups;

// A launch that lacks only the memory for its partial sums.
struct Prepared {
  Index tiles_per_sample;
  std::function<void(double* partial)> run;
};

// ---- the planar layout --------------------------------------------------------------------------

// Calls f(X(), P()) with the C++ types of x and of the parameters. Returns nothing if there is no
// planar kernel for these types.
template <class F>
std::optional<Prepared> with_planar_types(DType x, DType p, const F& f) {
  if (x == DType::float32 && p == DType::float32) return f(float(), float());
  if (x == DType::bfloat16 && p == DType::bfloat16) return f(bfloat16(), bfloat16());
  if (x == DType::float16 && p == DType::float16) return f(float16(), float16());
  if (x == DType::float32 && p == DType::bfloat16) return f(float(), bfloat16());
  if (x == DType::float32 && p == DType::float16) return f(float(), float16());
  return {};
}

// Fills a planar kernel's arguments for a piece. Returns false if the layout is not planar. Inputs
// from number `optional` on may be absent, or broadcast along the innermost dimension.
template <class Params>
bool plan_planar(Params& p, const Problem& problem, const Piece& piece, int optional, int vector) {
  std::vector<View*> views;
  for (View& view : p.in) {
    view = view_of(problem.in, static_cast<int>(&view - p.in), piece);
    views.push_back(&view);
  }
  for (View& view : p.out) {
    view = view_of(problem.out, static_cast<int>(&view - p.out), piece);
    views.push_back(&view);
  }
  p.space = number(piece.order, views);
  for (int i = 1; i < optional; ++i) {
    if (p.in[i].dtype != p.in[1].dtype) return false;
  }
  for (const View* view : views) {
    if (!fits_32_bits(*view, p.space)) return false;
  }
  for (const View& view : p.in) {
    if (&view - p.in >= optional && view.stride[p.space.dims - 1] == 0) continue;
    if (!aligned(view, p.space, vector)) return false;
  }
  for (const View& view : p.out) {
    if (!aligned(view, p.space, vector)) return false;
  }
  if (piece.length % vector) return false;
  const Index step = kPlanarThreads<decltype(p.op)> * Index(vector);
  const Index vectors = ceil_div(piece.samples * piece.length, step * kManyTiles);
  const Index max_vectors = std::min(Index(kPlanarVectors), ceil_div(piece.length, step));
  p.tiling = tiles_of(piece.samples, piece.length, step * std::min(vectors, max_vectors));
  return true;
}

template <class Op, bool inverse>
std::optional<Prepared> prepare_planar(const Problem& problem, const Op& op, const Piece& piece,
                                       Stream stream) {
  return with_planar_types(
      problem.in[0].dtype, problem.in[1].dtype,
      [&](auto x, auto parameter) -> std::optional<Prepared> {
        using X = decltype(x);
        using P = decltype(parameter);
        PlanarTransform<Op> p{op};
        if (!plan_planar(p, problem, piece, 1 + Op::kGroups, kVector<X, P>)) return {};
        return Prepared{p.tiling.per_sample.value, [=](double* partial) mutable {
                          p.partial = partial;
                          launch(planar_transform<Op, X, P, inverse>, p.tiling.tiles,
                                 kPlanarThreads<Op>, kWarp * int(sizeof(float)), stream, p);
                        }};
      });
}

template <class Op, bool inverse>
std::optional<Prepared> prepare_planar_gradient(const Problem& problem, const Op& op,
                                                const Piece& piece, Stream stream) {
  return with_planar_types(
      problem.in[0].dtype, problem.in[1].dtype,
      [&](auto x, auto parameter) -> std::optional<Prepared> {
        using X = decltype(x);
        using P = decltype(parameter);
        PlanarGradient<Op> p{op};
        if (!plan_planar(p, problem, piece, 1 + Op::kGroups, kVector<X, P>)) return {};
        const DType gy = p.in[kGradYIndex<Op>].dtype, gl = p.in[kGradYIndex<Op> + 1].dtype;
        if (p.in[kGradYIndex<Op>].data && gy != problem.in[0].dtype) return {};
        if (p.in[kGradYIndex<Op> + 1].data && gl != DType::float32) return {};
        return Prepared{0, [=](double*) {
                          launch(planar_gradient<Op, X, P, inverse>, p.tiling.tiles,
                                 kPlanarThreads<Op>, 0, stream, p);
                        }};
      });
}

// ---- any layout --------------------------------------------------------------------------------

inline Staging staging_of(const View& view, const Space& space) {
  if (view.parameter_stride != 1 || view.num_parameters == 1) return Staging::planar;
  Index run = view.num_parameters;
  for (int d = space.dims - 1; d >= 0; --d) {
    if (view.stride[d] != run) return Staging::rows;
    run *= space.size[d].value;
  }
  return Staging::dense;
}

// Fills `groups` from operands; several groups in one packed tensor become one. Returns the number
// of columns in a row.
template <int COUNT>
int plan_groups(Group (&groups)[COUNT], const Operand* operands, int count, const Piece& piece) {
  int column = 0;
  for (int g = 0; g < count; ++g) {
    const Operand& operand = operands[1 + g];
    if (operand.part_of >= 0 || operand.on_host) continue;
    groups[g].view = view_of(operand, piece);
    groups[g].column = column;
    column += operand.num_parameters;
  }
  return column;
}

// The arguments of a staged kernel, except for tiles, shared memory and sums.
template <class Op>
Staged<Op> plan_staged(const Problem& problem, const Op& op, const Piece& piece, bool gradient) {
  Staged<Op> p{op};
  p.x = view_of(problem.in[0], piece);
  p.y = view_of(problem.out[0], piece);
  std::vector<View*> views{&p.x, &p.y, &p.logabsdet, &p.gy, &p.gl};
  p.row = plan_groups(p.in, problem.in, Op::kGroups, piece) | 1;
  if (gradient) {
    p.gy = view_of(problem.in[kGradYIndex<Op>], piece);
    p.gl = view_of(problem.in[kGradYIndex<Op> + 1], piece);
    plan_groups(p.out, problem.out, problem.num_outputs - 1, piece);
  } else {
    p.logabsdet = view_of(problem.out[1], piece);
  }
  for (Group& group : p.in) views.push_back(&group.view);
  for (Group& group : p.out) views.push_back(&group.view);
  p.space = number(piece.order, views);
  const auto finish = [&](Group& group) {
    group.staging = staging_of(group.view, p.space);
    group.num_parameters = Divisor(group.view.num_parameters);
  };
  for (Group& group : p.in) finish(group);
  for (Group& group : p.out) finish(group);
  return p;
}

// Sets the workspace's size; returns the number of elements in a tile, so that shared memory
// suffices.
template <class Op>
Index plan_shared(Staged<Op>& p) {
  p.workspace = p.op.workspace();
  return threads_that_fit(kStagedThreads, [&](Index tile) { return staged_bytes(p, tile); });
}

template <class Op, bool inverse, bool gradient>
void launch_staged(Staged<Op> p, Stream stream) {
  const Index tile = p.tiling.tile;
  p.offsets_at = static_cast<int>(staged_offsets_at(p, tile));
  const int threads = static_cast<int>(ceil_div(tile, kWarp) * kWarp);
  launch(staged<Op, inverse, gradient>, p.tiling.tiles, threads,
         static_cast<int>(staged_bytes(p, tile)), stream, p);
}

template <class Op, bool inverse>
Prepared prepare_staged(const Problem& problem, const Op& op, const Piece& piece, Index length,
                        void* sums, Stream stream) {
  using T = scalar_t<typename Op::Lane>;
  Staged<Op> p = plan_staged(problem, op, piece, false);
  const Index tile = plan_shared(p);
  // Short samples: a tile has several.
  if (sums && piece.length == length && length <= tile) {
    p.sums = static_cast<T*>(sums) + piece.first_sample;
    p.sample = static_cast<int>(length);
    p.tiling = tiles_of(1, piece.samples * length, tile / length * length);
    return {0, [=](double*) { launch_staged<Op, inverse, false>(p, stream); }};
  }
  p.tiling = tiles_of(piece.samples, piece.length, std::min(tile, piece.samples * piece.length));
  return {p.tiling.per_sample.value, [=](double* partial) mutable {
            p.partial = partial;
            launch_staged<Op, inverse, false>(p, stream);
          }};
}

// ---- transforms --------------------------------------------------------------------------------

template <class T>
void add_samples(const double* partial, Index count, T* logabsdet, Index samples, Stream stream) {
  for (Index first = 0; first < samples; first += cuda::largest_launch) {
    const Index rows = std::min(cuda::largest_launch, samples - first);
    Partials p{partial + first * count, static_cast<std::uint32_t>(rows),
               static_cast<std::uint32_t>(count), Divisor(rows)};
    p.space.size[0] = Divisor(rows);
    p.out.data = reinterpret_cast<char*>(logabsdet + first);
    p.out.dtype = sizeof(T) == 8 ? DType::float64 : DType::float32;
    p.out.stride[0] = 1;
    add_partials(p, stream);
  }
}

template <class Op, bool inverse>
void run_transform(const Problem& problem, const Op& op, int batch_dims, void* logabsdet,
                   const Context& context) {
  using T = scalar_t<typename Op::Lane>;
  const Stream stream = stream_of(context);
  const bool summed = batch_dims < problem.dims;
  const int fixed = summed ? batch_dims : 0;
  const Order order = visiting_order(problem, fixed);
  Index samples = 1;
  for (int d = 0; d < fixed; ++d) samples *= problem.size[d];
  const Index length = order.total / samples;

  const std::vector<Piece> pieces = pieces_of(order, fixed);
  std::vector<Prepared> prepared;
  for (const Piece& piece : pieces) {
    std::optional<Prepared> planar;
    if constexpr (Op::kParameters > 0 && sizeof(T) == 4) {
      if (!summed || length >= kMinPlanarSample) {
        planar = prepare_planar<Op, inverse>(problem, op, piece, stream);
      }
    }
    prepared.push_back(planar ? *planar
                              : prepare_staged<Op, inverse>(problem, op, piece, length,
                                                            summed ? logabsdet : nullptr, stream));
  }
  // The partial sums are a matrix, samples x count. All samples are cut alike, so the pieces of the
  // first one determine `count`. If a sample has several pieces, `offset` is the sum of the tiles
  // of its earlier pieces.
  Index count = 0;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    if (pieces[i].first_sample == pieces[0].first_sample) count += prepared[i].tiles_per_sample;
  }
  double* const partial =
      summed && count > 0 ? allocate<double>(context, samples * count) : nullptr;
  Index offset = 0;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    if (i > 0 && pieces[i].first_sample != pieces[i - 1].first_sample) offset = 0;
    prepared[i].run(partial ? partial + pieces[i].first_sample * count + offset : nullptr);
    offset += prepared[i].tiles_per_sample;
  }
  if (partial) add_samples(partial, count, static_cast<T*>(logabsdet), samples, stream);
}

// ---- gradients ---------------------------------------------------------------------------------

template <class Op, bool inverse>
void run_gradient_each(const Problem& problem, const Op& op, const Context& context) {
  const Stream stream = stream_of(context);
  for (const Piece& piece : pieces_of(visiting_order(problem, 0), 0)) {
    std::optional<Prepared> planar;
    if constexpr (Op::kParameters > 0 && sizeof(typename Op::Lane) == 4) {
      planar = prepare_planar_gradient<Op, inverse>(problem, op, piece, stream);
    }
    if (planar) {
      planar->run(nullptr);
      continue;
    }
    Staged<Op> p = plan_staged(problem, op, piece, true);
    const Index tile = plan_shared(p);
    p.tiling = tiles_of(1, piece.length, std::min(tile, piece.length));
    launch_staged<Op, inverse, true>(p, stream);
  }
}

// Sets a tensor's views over the parameters' dimensions and over those of the sharing elements.
inline void set_views(View (&views)[2], const Operand& operand, const Piece& own,
                      const Piece& others) {
  views[0] = view_of(operand, own);
  views[1] = view_of(operand, others);
  if (views[0].data) views[0].data += views[1].data - static_cast<char*>(operand.data);
}

template <class Op, bool inverse>
void run_gradient_shared(const Problem& problem, const SharedDims& shared, const Op& op,
                         const Context& context) {
  const Stream stream = stream_of(context);
  const auto keep = [&](bool is_shared) {
    return visiting_order(problem, 0, [&](int d) { return shared.dim[d] == is_shared; });
  };
  const std::vector<Piece> owns = pieces_of(keep(false), 0), others = pieces_of(keep(true), 0);
  for (const Piece& own : owns) {
    const Index num_own = own.order.total;
    const auto slabs_of = [&](const Piece& other) {
      return std::clamp<Index>(other.order.total / kMinSlabElements, 1,
                               ceil_div(kManyThreads, num_own));
    };
    Index all_slabs = 0;
    for (const Piece& other : others) all_slabs += slabs_of(other);

    Broadcast<Op> p{op};
    p.all_slabs = static_cast<std::uint32_t>(all_slabs);
    for (const Piece& other : others) {
      Group in[Op::kGroups], out[Op::kGroups];
      p.row = plan_groups(in, problem.in, Op::kGroups, own);
      p.num_gradients = plan_groups(out, problem.out, problem.num_outputs - 1, own);
      p.workspace = op.workspace();
      std::vector<View*> own_views, other_views;
      const auto over_both = [&](View(&views)[2], const Operand& operand) {
        set_views(views, operand, own, other);
        own_views.push_back(&views[0]);
        other_views.push_back(&views[1]);
      };
      over_both(p.x, problem.in[0]);
      over_both(p.gx, problem.out[0]);
      over_both(p.gy, problem.in[kGradYIndex<Op>]);
      over_both(p.gl, problem.in[kGradYIndex<Op> + 1]);
      for (int g = 0; g < Op::kGroups; ++g) {
        p.in[g] = in[g].view;
        p.out[g] = out[g].view;
        p.column[g] = in[g].column;
        own_views.push_back(&p.in[g]);
        own_views.push_back(&p.out[g]);
      }
      p.own = number(own.order, own_views);
      p.others = number(other.order, other_views);
      p.num_own = Divisor(num_own);
      p.num_others = static_cast<std::uint32_t>(other.order.total);
      p.slabs = static_cast<std::uint32_t>(slabs_of(other));
      if (all_slabs > 1 && !p.partial) {
        p.partial = allocate<double>(context, p.num_gradients * num_own * all_slabs);
      }
      p.threads = threads_that_fit(kBroadcastThreads,
                                   [&](Index threads) { return broadcast_bytes(p, threads); });
      const int threads = static_cast<int>(ceil_div(p.threads, kWarp) * kWarp);
      launch(broadcast_gradient<Op, inverse>, ceil_div(num_own * p.slabs, p.threads), threads,
             static_cast<int>(broadcast_bytes(p, p.threads)), stream, p);
      p.first_slab += p.slabs;
    }
    for (int g = 0; p.partial && g < Op::kGroups; ++g) {
      if (!p.out[g].data) continue;
      const Index rows = num_own * p.out[g].num_parameters;
      Partials sums{p.partial + p.column[g] * num_own * all_slabs,
                    static_cast<std::uint32_t>(rows),
                    p.all_slabs,
                    p.num_own,
                    p.own,
                    p.out[g]};
      add_partials(sums, stream);
    }
  }
}

// ---- the entry points --------------------------------------------------------------------------

// The constants if all elements share them, else null.
inline const double* constants_of(const Problem& problem, int group) {
  const Operand& operand = problem.in[1 + group];
  return operand.on_host ? static_cast<const double*>(operand.data) : nullptr;
}

// Creates an adapter for a problem.
template <class Op>
Op make_adapter(const Problem& problem) {
  const auto& config = *static_cast<const typename Op::Config*>(problem.config);
  return Op(config, constants_of(problem, Op::kGroups - 1));
}

// Calls work(op) with the fastest adapter for a problem.
template <class Description, class Work>
void with_adapter(const Problem& problem, const Work& work) {
  const auto& config = *static_cast<const typename Description::Config*>(problem.config);
  const auto with = [&]<class Op>() { work(make_adapter<Op>(problem)); };
  if (problem.use_float64) {
    Description::template with_op<double>(config, with);
  } else {
    Description::template with_op<FastFloat>(config, with);
  }
}

template <bool inverse, class Description>
void run_gradient(const Problem& problem, const Context& context) {
  const SharedDims shared(problem);
  with_adapter<Description>(problem, [&]<class Op>(const Op& op) {
    if (!shared.any) return run_gradient_each<Op, inverse>(problem, op, context);
    // One kernel for all configurations: more would not pay here.
    using Any = typename Description::template Op<typename Op::Lane>;
    run_gradient_shared<Any, inverse>(problem, shared, make_adapter<Any>(problem), context);
  });
}

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow

namespace robustflow::cuda {

template <class Description>
void transform(const Problem& problem, int batch_dims, void* logabsdet, const Context& context) {
  with_adapter<Description>(problem, [&]<class Op>(const Op& op) {
    problem.inverse ? run_transform<Op, true>(problem, op, batch_dims, logabsdet, context)
                    : run_transform<Op, false>(problem, op, batch_dims, logabsdet, context);
  });
}

template <class Description>
void gradient(const Problem& problem, const Context& context) {
  problem.inverse ? run_gradient<true, Description>(problem, context)
                  : run_gradient<false, Description>(problem, context);
}

}  // namespace robustflow::cuda
