// A TCG plugin for QEMU's user-mode emulation of aarch64: how many instructions of each class ran. It prints a line of JSON to stderr at the end.
// Every block of translated code adds its counts when it begins, so the sums are exact but for a block that a signal ends. One thread.
//
// The declarations are those of QEMU's documented plugin interface, version 1 (docs/devel/tcg-plugins.rst); Debian ships no header.
#include <stdint.h>
#include <stdio.h>
#include <stddef.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { ADD_U64 = 0 };
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);
EXPORT int qemu_plugin_version = 1;

// Encodings of the Arm Architecture Reference Manual, A64: an instruction belongs to a class if, under a mask, it has a value.
struct encoding {
  const char *name;
  uint32_t mask, value;
};
static const struct encoding kEncodings[] = {
    {"sdot", 0xBFE0FC00, 0x0E809400},          // vectors
    {"sdot", 0xBFC0F400, 0x0F80E000},          // by element
    {"smmla", 0xFFE0FC00, 0x4E80A400},
    {"other_dot", 0xBFE0FC00, 0x2E809400},     // UDOT
    {"other_dot", 0xBFC0F400, 0x2F80E000},
    {"other_dot", 0xBFE0FC00, 0x0E809C00},     // USDOT
    {"other_dot", 0xFFE0FC00, 0x6E80A400},     // UMMLA
    {"other_dot", 0xFFE0FC00, 0x4E80AC00},     // USMMLA
    {"fmla", 0xBFA0FC00, 0x0E20CC00},          // vectors of fp32 and fp64
    {"fmla", 0xBF80F400, 0x0F801000},          // by element
    {"fmla", 0xBFE0FC00, 0x0E400C00},          // vectors of fp16
    {"fmla", 0xBFC0F400, 0x0F001000},          // by element
    {"outer_product", 0xFF200000, 0x80800000}, // SME: FMOPA of fp32 and its like
    {"outer_product", 0xFF200000, 0xA0800000}, // SMOPA and its like
};
static const char *const kNames[] = {"sdot", "smmla", "other_dot", "fmla", "outer_product", "vector_load", "load", "all"};
enum { VECTOR_LOAD = 5, LOAD = 6, ALL = 7, CLASSES = 8 };
static uint64_t totals[CLASSES];

// Loads of one register (LDR and its forms), of a pair, of a literal, of structures (LD1 to LD4); atomics are none of them.
static int load_class(uint32_t code) {
  const uint32_t vector = code >> 26 & 1;
  const uint32_t kind = code >> 22 & 3;
  if ((code & 0x3B000000) == 0x39000000 || ((code & 0x3B000000) == 0x38000000 && (code & 0x00200C00) != 0x00200000)) {
    const int loads = vector ? (kind & 1) : kind == 1 || (kind >= 2 && !(code >> 30 == 3));
    return !loads ? -1 : vector ? VECTOR_LOAD : LOAD;
  }
  if ((code & 0x38000000) == 0x28000000) {
    return !(code & 0x00400000) ? -1 : vector ? VECTOR_LOAD : LOAD;
  }
  if ((code & 0x3B000000) == 0x18000000) {
    return vector ? VECTOR_LOAD : LOAD;
  }
  if ((code & 0xBE000000) == 0x0C000000) {
    return code & 0x00400000 ? VECTOR_LOAD : -1;
  }
  return -1;
}

static void count(uint32_t code, uint64_t *counts) {
  counts[ALL] += 1;
  for (size_t at = 0; at < sizeof kEncodings / sizeof *kEncodings; ++at) {
    if ((code & kEncodings[at].mask) == kEncodings[at].value) {
      for (size_t name = 0; name < CLASSES; ++name) {
        counts[name] += strcmp(kNames[name], kEncodings[at].name) == 0;
      }
      return;
    }
  }
  const int load = load_class(code);
  if (load >= 0) {
    counts[load] += 1;
  }
}

static void translated(plugin_id id, struct qemu_plugin_tb *block) {
  (void)id;
  uint64_t counts[CLASSES] = {0};
  for (size_t at = 0; at < qemu_plugin_tb_n_insns(block); ++at) {
    uint32_t code;
    memcpy(&code, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, at)), sizeof code);
    count(code, counts);
  }
  for (size_t name = 0; name < CLASSES; ++name) {
    if (counts[name]) {
      qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &totals[name], counts[name]);
    }
  }
}

static void ended(plugin_id id, void *nothing) {
  (void)id;
  (void)nothing;
  fprintf(stderr, "\ncounted {");
  for (size_t name = 0; name < CLASSES; ++name) {
    fprintf(stderr, "%s\"%s\": %llu", name ? ", " : "", kNames[name], (unsigned long long)totals[name]);
  }
  fprintf(stderr, "}\n");
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int count_of_words, char **words) {
  (void)info;
  (void)count_of_words;
  (void)words;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, ended, NULL);
  return 0;
}
