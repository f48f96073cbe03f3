// Names and order of the levels, and the table that each of them selects.
#include <cstdlib>
#include <stdexcept>

#include "cases.h"

namespace fastconv::test {
namespace {

std::string check_choice(Isa isa) {
  setenv("FASTCONV_ISA", isa_name(isa), 1);
  if (isa_from_environment() != isa) return "FASTCONV_ISA does not choose it";
  const KernelTable* table = kernels_of(isa);
  if (table == nullptr || table->isa != isa) return "its table is another level's";
  if (!select_isa(isa) || &kernels() != table) return "select_isa does not select it";
  return "";
}

std::string check_refusal(const Level& best, const char* name) {
  setenv("FASTCONV_ISA", name, 1);
  try {
    isa_from_environment();
  } catch (const std::runtime_error& error) {
    const bool names = std::strstr(error.what(), best.name) != nullptr;
    return names ? "" : text("the message does not name the levels:", error.what());
  }
  return text("FASTCONV_ISA may be", name);
}

}  // namespace

void test_isa() {
  for (const Level& level : all_levels()) {
    Isa isa;
    if (parse_isa(level.name, &isa)) score().count(level, "isa", check_choice(isa));
  }
  const Level& best = all_levels()[isa_levels().size() - 1];
  for (const char* name : {"wide", "Scalar", "scalar "})
    score().count(best, "isa", check_refusal(best, name));
  unsetenv("FASTCONV_ISA");
  score().count(best, "isa", isa_from_environment() == isa_levels().back() ? "" : "not the best");
}

}  // namespace fastconv::test
