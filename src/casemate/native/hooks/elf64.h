/* As much of ELF as is needed to find relocations (System V ABI, AMD64 supplement).

   The system's own header is not used: a compiler for freestanding code need not have it. */
#pragma once
#include "engine.h"

struct elf_header {
    u8 ident[16];
    u16 type, machine;
    u32 version;
    u64 entry, segments_at, sections_at;
    u32 flags;
    u16 size, segment_size, segment_count, section_size, section_count, names;
};

struct elf_segment {
    u32 type, flags;
    u64 offset, address, physical, file_size, memory_size, alignment;
};

struct elf_dynamic { u64 tag, value; };

struct elf_symbol {
    u32 name;
    u8 info, other;
    u16 section;
    u64 value, size;
};

/* Behind the filter are the buckets, and a word for each symbol from the first one on: its hash, but bit 0 ends a bucket. */
struct elf_hash {
    u32 bucket_count, first_symbol, filter_words, filter_shift;
    u64 filter[];
};
enum { ELF_HASH_SEED = 5381 };

struct elf_relocation {
    u64 offset;
    u32 kind, symbol;
    u64 addend;
};

struct elf_note {
    u32 name_size, size, type;
    u8 name[4], bytes[];
};

enum { SEGMENT_DYNAMIC = 2, SEGMENT_NOTE = 4, NOTE_BUILD_ID = 3 };
enum {
    DYNAMIC_PLTRELSZ = 2,
    DYNAMIC_STRTAB = 5,
    DYNAMIC_SYMTAB = 6,
    DYNAMIC_JMPREL = 23,
    DYNAMIC_GNU_HASH = 0x6ffffef5
};
