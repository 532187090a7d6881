// robustflow._C: the native functions that are not operators. (Operators register themselves when
// this library is loaded: csrc/ops_cpu.cpp.) pybind11 is torch's own copy, so that it supports
// every Python that torch supports. No tensor or other torch type passes through this file.
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

// Python passes addresses as integers, after robustflow._native has checked the tensors.
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
  m.doc() = "Native functions that are not operators; robustflow._native wraps them.";
  m.def("isa_name", robustflow::cpu::isa_name);
  m.def("set_isa", robustflow::cpu::set_isa, py::arg("name"));
  m.def("isa_built", robustflow::cpu::isa_built);
  m.def("isa_supported", robustflow::cpu::isa_supported);
  m.def("summarise", summarise);
  m.def("find_crossings", find_crossings);
}
