// Which instruction set is in use, its table of operations, and where each entry of that comes from.
#include "ops.h"

#include <string.h>

#include "processor.h"

namespace awq {
namespace {

// visit(name, member) for every entry.
template <class Visit>
constexpr void for_each_op(Visit&& visit) {
  visit("linear_bf16", &Ops::linear_bf16);
  visit("linear_f32", &Ops::linear_f32);
  visit("linear_int8", &Ops::linear_int8);
  visit("pack_tile_3", &Ops::pack_tile_3);
  visit("pack_tile_4", &Ops::pack_tile_4);
  visit("norm", &Ops::norm);
  visit("layer_norm", &Ops::layer_norm);
  visit("norm_heads", &Ops::norm_heads);
  visit("add", &Ops::add);
  visit("embed", &Ops::embed);
  visit("rope", &Ops::rope);
  visit("gate", &Ops::gate);
  visit("activate", &Ops::activate);
  visit("attend", &Ops::attend);
  visit("attend_int8", &Ops::attend_int8);
  visit("merge", &Ops::merge);
  visit("scale", &Ops::scale);
  visit("dense", &Ops::dense);
  visit("dense_logits", &Ops::dense_logits);
  visit("to_bytes", &Ops::to_bytes);
  visit("route", &Ops::route);
  visit("mix", &Ops::mix);
  visit("cap", &Ops::cap);
}

template <class Entry>
constexpr size_t size_of(Entry Ops::*) {
  return sizeof(Entry);
}

constexpr size_t visited_bytes() {
  size_t bytes = 0;
  for_each_op([&](const char*, auto member) { bytes += size_of(member); });
  return bytes;
}
static_assert(visited_bytes() == sizeof(Ops), "for_each_op leaves an entry out");

constexpr int32_t count_ops() {
  int32_t count = 0;
  for_each_op([&](const char*, auto) { ++count; });
  return count;
}
constexpr int32_t OP_COUNT = count_ops();

template <class Function>
bool is_whole(Function* op) {
  return op != nullptr;
}
bool is_whole(const Route& route) {
  bool whole = route.rows > 0 && route.lay_out != nullptr && route.store_rows != nullptr;
  for (const auto& block : route.block)
    for (int64_t rows = 1; rows <= route.rows; ++rows) whole = whole && block[rows] != nullptr;
  return whole;
}

struct Selected {
  const char* isa = nullptr;
  Ops ops{};
  const char* isa_of[OP_COUNT] = {};  // which instruction set each entry comes from
};

// What an instruction set changes in the table is its own.
void use(const Isa& isa, Selected& selected) {
  const Ops before = selected.ops;
  isa.use(selected.ops);
  selected.isa = isa.name;
  int32_t i = 0;
  for_each_op([&](const char*, auto member) {
    if (memcmp(&(before.*member), &(selected.ops.*member), size_of(member)) != 0) selected.isa_of[i] = isa.name;
    ++i;
  });
}

// Every instruction set that is there and fast, from scalar up to `last`, fast or not, or, where that is "", up to the
// best; false where `last` is unknown or not there.
bool select(const char* last, Selected& selected) {
  const bool is_named = *last != '\0';
  const Isas all = isas();
  for (int64_t i = 0; i < all.count; ++i) {
    const Isa& isa = all.first[i];
    const bool is_last = strcmp(isa.name, last) == 0;
    if (isa.is_there && (is_last || isa.is_fast == nullptr || isa.is_fast())) use(isa, selected);
    if (is_last) return isa.is_there;
  }
  return !is_named;
}

Selected best() {
  Selected selected;
  select("", selected);
  return selected;
}

Selected& current() {
  static Selected selected = best();
  return selected;
}

}  // namespace

const Ops& ops() { return current().ops; }

}  // namespace awq

const char* awq_isa(void) { return awq::current().isa; }

int32_t awq_select_isa(const char* name) {
  awq::Selected selected;
  if (!awq::select(name, selected)) return -1;
  awq::current() = selected;
  return 0;
}

int32_t awq_op_count(void) { return awq::OP_COUNT; }

const char* awq_op_name(int32_t index) {
  const char* found = nullptr;
  awq::for_each_op([&](const char* name, auto) {
    if (index-- == 0) found = name;
  });
  return found;
}

const char* awq_op_isa(int32_t index) {
  using namespace awq;
  if (index < 0 || index >= OP_COUNT) return nullptr;
  const Selected& selected = current();
  bool whole = false;
  int32_t i = 0;
  for_each_op([&](const char*, auto member) {
    if (i++ == index) whole = is_whole(selected.ops.*member);
  });
  return whole ? selected.isa_of[index] : nullptr;
}
