#include "../order.h"
#include "../transforms.h"
#include "cuda/driver.h"
#include "cuda/kernels.h"

namespace robustflow::cuda {
namespace {

struct EntryPoints {
  void (*transform)(const Problem&, int batch_dims, void* logabsdet, const Context&);
  void (*gradient)(const Problem&, const Context&);
};
#define ROBUSTFLOW_ENTRY(name, Description) {transform<Description>, gradient<Description>},
constexpr EntryPoints kEntryPoints[] = {ROBUSTFLOW_TRANSFORMS(ROBUSTFLOW_ENTRY)};
#undef ROBUSTFLOW_ENTRY

const EntryPoints& entry_points(const Problem& problem) {
  return kEntryPoints[static_cast<int>(problem.transform)];
}

}  // namespace

void run_transform(const Problem& problem, int batch_dims, void* logabsdet,
                   const Context& context) {
  if (is_empty(problem)) return;  // the caller has set empty sums to zero
  entry_points(problem).transform(problem, batch_dims, logabsdet, context);
}

void run_gradient(const Problem& problem, const Context& context) {
  if (is_empty(problem)) return;  // the caller has set gradients of shared parameters to zero
  entry_points(problem).gradient(problem, context);
}

}  // namespace robustflow::cuda
