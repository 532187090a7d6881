// robustflow._C: functions that are not operators. The operators register themselves
// (csrc/ops_cpu.cpp) when this library is loaded. It uses torch's own copy of pybind11, which
// supports every Python that torch supports; no tensor or torch type passes through it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <tuple>

#include "cpu/isa.h"
#include "cpu/magnitudes.h"

namespace py = pybind11;

namespace {

using robustflow::cpu::Magnitudes;
using robustflow::cpu::Shape;

// Addresses come from Python as numbers; robustflow._native checks the tensors.
template <class T>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

std::tuple<double, double, double, std::int64_t> summarise(std::uintptr_t x, std::int64_t samples,
                                                           std::int64_t channels,
                                                           std::int64_t positions,
                                                           std::uintptr_t peaks) {
  const py::gil_scoped_release released;
  const Magnitudes sums = robustflow::cpu::active_magnitudes().summarise(
      at<const float>(x), {samples, channels, positions}, at<float>(peaks));
  return {sums.peak, sums.total, sums.squares, sums.nonfinite};
}

void find_crossings(std::uintptr_t before, std::uintptr_t after, std::uintptr_t mask,
                    std::int64_t sample_stride, std::int64_t channel_stride, std::int64_t samples,
                    std::int64_t channels, std::int64_t positions, float growth, float magnitude,
                    std::uintptr_t marks) {
  const py::gil_scoped_release released;
  robustflow::cpu::active_magnitudes().crossings(
      at<const float>(before), at<const float>(after),
      {at<const std::uint8_t>(mask), sample_stride, channel_stride}, {samples, channels, positions},
      growth, magnitude, at<std::uint8_t>(marks));
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "What is no operator: instruction sets, loops; see robustflow._native.";
  m.def("isa_name", robustflow::cpu::isa_name);
  m.def("set_isa", robustflow::cpu::set_isa, py::arg("name"));
  m.def("isa_built", robustflow::cpu::isa_built);
  m.def("isa_supported", robustflow::cpu::isa_supported);
  m.def("summarise", summarise);
  m.def("find_crossings", find_crossings);
}
