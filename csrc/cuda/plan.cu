#include "cuda/plan.h"

namespace robustflow {

std::int64_t cuda::largest_launch = std::int64_t(1) << 29;

inline namespace ROBUSTFLOW_ISA {
namespace {

using Index = std::int64_t;

Index product(const Index* begin, const Index* end) {
  Index n = 1;
  for (; begin != end; ++begin) n *= *begin;
  return n;
}

// Cuts a piece along dimension d, and along later ones if a single index of d is still too large.
void cut(const Order& order, int batch, int d, Piece piece, std::vector<Piece>& out) {
  const Index* sizes = piece.order.size;
  const int dims = piece.order.dims;
  piece.order.total = product(sizes, sizes + dims);
  if (piece.order.total <= cuda::largest_launch || d == dims) {
    piece.samples = product(sizes, sizes + batch);
    piece.length = product(sizes + batch, sizes + dims);
    piece.first_sample = 0;
    for (int i = 0; i < batch; ++i) {
      piece.first_sample = piece.first_sample * order.size[i] + piece.start[i];
    }
    out.push_back(piece);
    return;
  }
  const Index inner = product(sizes + d + 1, sizes + dims);
  const Index step = std::max(Index(1), cuda::largest_launch / inner);
  const Index begin = piece.start[d], size = sizes[d];
  for (Index i = 0; i < size; i += step) {
    piece.start[d] = begin + i;
    piece.order.size[d] = std::min(step, size - i);
    cut(order, batch, d + 1, piece, out);
  }
}

}  // namespace

std::vector<Piece> pieces_of(const Order& order, int batch_dims) {
  int batch = 0;
  while (batch < order.dims && order.dim[batch] < batch_dims) ++batch;
  std::vector<Piece> out;
  Piece whole;
  whole.order = order;
  cut(order, batch, 0, whole, out);
  return out;
}

View view_of(const Operand& operand, const Piece& piece) {
  View view;
  view.dtype = operand.dtype;
  view.num_parameters = operand.num_parameters;
  view.parameter_stride = operand.parameter_stride;
  if (!operand.data || operand.on_host) return view;
  Index offset = 0;
  for (int i = 0; i < piece.order.dims; ++i) {
    view.stride[i] = operand.stride[piece.order.dim[i]];
    offset += view.stride[i] * piece.start[i];
  }
  view.data = static_cast<char*>(operand.data) + offset * size_of(operand.dtype);
  return view;
}

View view_of(const Operand* operands, int index, const Piece& piece) {
  const Operand& operand = operands[index];
  if (operand.part_of < 0) return view_of(operand, piece);
  View view = view_of(operands[operand.part_of], piece);
  if (view.data) view.data += operand.first_parameter * view.parameter_stride * size_of(view.dtype);
  view.num_parameters = operand.num_parameters;
  return view;
}

Space number(const Order& order, const std::vector<View*>& views) {
  Index size[kMaxDims];
  int dims = 0;
  for (int d = 0; d < order.dims; ++d) {
    const bool joins = dims > 0 && std::all_of(views.begin(), views.end(), [&](const View* view) {
                         return view->stride[dims - 1] == view->stride[d] * order.size[d];
                       });
    if (joins) {
      size[--dims] *= order.size[d];
    } else {
      size[dims] = order.size[d];
    }
    for (View* view : views) view->stride[dims] = view->stride[d];
    ++dims;
  }
  Space space;
  if (dims == 0) {
    for (View* view : views) view->stride[0] = 0;
    return space;
  }
  space.dims = dims;
  for (int d = 0; d < dims; ++d) space.size[d] = Divisor(size[d]);
  return space;
}

Tiling tiles_of(Index samples, Index length, Index tile) {
  const Index per_sample = (length + tile - 1) / tile;
  Tiling tiling;
  tiling.tile = static_cast<std::uint32_t>(tile);
  tiling.length = static_cast<std::uint32_t>(length);
  tiling.per_sample = Divisor(per_sample);
  tiling.tiles = static_cast<std::uint32_t>(samples * per_sample);
  return tiling;
}

bool fits_32_bits(const View& view, const Space& space) {
  Index last = (view.num_parameters - 1) * view.parameter_stride;
  for (int d = 0; d < space.dims; ++d) last += (space.size[d].value - 1) * view.stride[d];
  return last < Index(1) << 32;
}

bool aligned(const View& view, const Space& space, int width) {
  if (!view.data) return true;
  const auto multiple = [&](Index n) { return n % width == 0; };
  const int inner = space.dims - 1;
  if (view.stride[inner] != 1 || !multiple(space.size[inner].value)) return false;
  if (reinterpret_cast<std::uintptr_t>(view.data) % sizeof(Words)) return false;
  return std::all_of(view.stride, view.stride + inner, multiple) &&
         (view.num_parameters == 1 || multiple(view.parameter_stride));
}

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
