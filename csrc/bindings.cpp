// robustflow._C: what is no operator. The operators register themselves (csrc/ops.cpp) when this
// library is loaded. torch's own copy of pybind11 fits every Python that torch fits; no tensor
// and no torch type crosses this module.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "build_facts.h"
#include "cpu/isa.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts and the choice of an instruction set; robustflow._native is its face.";
  m.def("build_facts", [] {
    const std::string facts(kBuildFacts);
    return py::module_::import("json").attr("loads")(facts.substr(facts.find('{')));
  });
  m.def("isa_name", robustflow::cpu::isa_name);
  m.def("set_isa", robustflow::cpu::set_isa, py::arg("name"));
  m.def("isa_built", robustflow::cpu::isa_built);
  m.def("isa_supported", robustflow::cpu::isa_supported);
}
