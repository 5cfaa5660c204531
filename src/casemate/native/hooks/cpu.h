/* One modelled CPU as the hooks know it. Python's mirror is host/model/cpu/hooks.py; a test compares the sizes. */
#pragma once
#include "engine.h"
#include "lapic.h"

enum { SITES = 256, CELLS = 4096, PAGES = 1 << 24, C_BIT = 39 };
enum { VECTOR_DB = 1, VECTOR_BP = 3, VECTOR_UD = 6, VECTOR_TS = 10, VECTOR_GP = 13, VECTOR_AC = 17, VECTOR_VC = 29 };

/* What the guest is, and what happens to it. */
enum { RAISES_VC = 1, RAISES_VC_DR7 = 2, SERVES_GHCB = 4 };

/* What a debugger of the host's waits for, and that interrupts wait meanwhile. */
enum { DEBUGS_STEPS = 1, DEBUGS_INT3 = 2, BLOCKS_INTERRUPTS = 4, DEBUGS_REGISTERS = 8, BREAKPOINTS = 4 };

/* What is refused on a page of an SNP guest. */
enum { REFUSE_PRIVATE = 1, REFUSE_SHARED = 2 };

/* What Python says of an instruction that the engine does not know; everything else is the exit code of its #VC. */
enum { UNDEFINED = 0, EXECUTED = 1 };

/* Exit codes of #VC, which are its error code (AMD APM volume 2, appendix C). */
enum {
    EXIT_READ_DR7 = 0x27, EXIT_WRITE_DR7 = 0x37, EXIT_CPUID = 0x72, EXIT_INVD = 0x76, EXIT_IOIO = 0x7b, EXIT_MSR = 0x7c,
    EXIT_WBINVD = 0x89, EXIT_NPF = 0x400, EXIT_NOT_VALIDATED = 0x404, EXIT_CODES = 0x800
};

/* Pseudo exceptions, by which an access that was undone comes to Python, and an instruction to control.c. */
enum { REFUSED_STORE = 0x2600, SHARED_ACCESS = 0x2601, EXECUTED_HERE = 0x2602, UNDONE_PORT = 0x2603, AT_BREAKPOINT = 0x2604, AT_DEBUG_REGISTER = 0x2605 };

enum { RF = 1 << 16 }; /* of EFLAGS, and of the flags that a block is translated for */

/* Model-specific registers: three ranges, and for each register how it is and whether an access raises #VC. */
enum { MSR_RANGES = 3, MSRS = 0x2000, UNKNOWN_MSRS = 64 };
enum { MSR_UNKNOWN = 0, MSR_ENGINE = 1, MSR_CONSTANT = 2, MSR_PLAIN = 3, MSR_ASKED = 4, MSR_RAISES = 0x80 };

struct unknown_msr { u32 index, count; };

struct msrs {
    u64 others; /* accesses to unknown registers that did not fit the list */
    u64 policy_elsewhere; /* of registers in none of the ranges */
    struct unknown_msr unknown[UNKNOWN_MSRS];
    u8 policy[MSR_RANGES][MSRS];
    u64 value[MSR_RANGES][MSRS];
};

/* Leaves of CPUID that were answered before, by a hash of leaf and index. */
enum { CPUID_LEAVES = 256 };
struct leaf { u32 leaf, index, known, eax, ebx, ecx, edx; };

/* Memory of the guest in one piece of the host's. */
enum { RAMS = 64 };
struct ram { u64 start, size; u8 *host; };

/* Programs of a flash unit that is in command mode (flash.c). */
enum { PROGRAMS = 1024 };
struct program { u32 offset, size; u64 value, ticks; };
struct flash {
    u64 gpa, size;
    u32 armed, pending, count, pending_size; /* pending: a first cycle that its second did not follow yet */
    u64 pending_offset, pending_value;
    void (*take)(u32 count, u32 has_pending);
    struct program log[PROGRAMS];
};

/* VMGEXITs that were served without Python, by kind. */
enum { SERVED_IOIO, SERVED_CPUID, SERVED_MSR, SERVED_MMIO_READ, SERVED_MMIO_WRITE, SERVED_MSR_CPUID, SERVED_KINDS = 8 };

/* What the CPUs of one guest tell each other, of which one executes at a time (tlb.c). */
enum { NOTED = 4096, PAGES_NOTED = 64 };
struct group {
    u64 fetched;        /* pages that code was fetched from for the first time */
    u64 written;        /* stores to pages with code, and the host's addresses of the last of these pages */
    u64 others_wait;    /* another CPU could execute: PAUSE ends a turn */
    u64 pauses;         /* turns that it ended */
    u64 pages[NOTED];
};

/* Blocks that were looked up before (lookup.c). A stamp says since when nothing changed; what is known of an older one is the page
   that it came from. */
enum { KNOWN_BLOCKS = 8192, PAGE_STAMPS = 1024 };
struct known_block { u64 pc; void *code, *block; u32 flags, stamp; };
struct known_blocks {
    struct known_block at[KNOWN_BLOCKS];
    u64 page[KNOWN_BLOCKS];
};

/* Entries of the TLB that a load of CR3 removes, and which regions of 2 MiB have entries of large pages, by a hash (tlb.c). */
enum { LOCALS = 256, LARGE_REGIONS = 1 << 15 };

/* Slow stores to a page, of which there are ever more until it is taken for data (tlb.c). */
enum { STORED = 64, DATA_AFTER = 256, IS_SET = 1 };
struct stored { u64 page; u32 stores, limit; };

/* Entries of page tables that entries of the TLB were made from (walks.c). */
enum { LEVELS = 5, WALKED = 512, WALKED_PLACES = 1024 };
struct walked { u64 *at, value; };

/* Locked instructions that are not atomic (atomics.c). */
enum { PLAIN = 16 };

struct cpu {
    u64 cpu, env;       /* the engine's CPUState and CPUX86State */
    struct cpu *next;   /* of the same cell */
    u8 *code_pages;     /* a byte for each page: whether anything was fetched from it */
    u8 *rights;         /* a byte for each page of an SNP guest: what is refused there; or 0 */
    struct msrs *msrs;
    u32 flags;
    u32 fill_kind, fill_is_probe; /* of the TLB entry that is being made */
    u32 store_size;
    u64 store_gpa, store_value; /* a store that its slot does not take */
    u64 refused_gpa;    /* what an SNP guest was refused last */

    /* A translation under way: where to go back to, what is being translated, and what is wrong with it. */
    void *undo[5];
    void *block;
    u32 is_translating, limit; /* limit: instructions of a block */
    u32 bad_vector, bad_code;  /* the exception that is due if the block begins with what is wrong */
    u32 window;         /* the last bytes of code that were looked at */
    u64 window_end;
    u64 aborted;        /* the engine gave up while the guest executed: its state is not to be trusted */
    u64 undone;         /* translations that were given up */
    u64 fetched;        /* pages that code was fetched from for the first time */
    struct group *group; /* or 0 where the guest has one CPU */
    u64 fetched_known, written_known; /* what of it is in this CPU's TLB and translations */
    u64 pages_noted[PAGES_NOTED]; /* pages that were noted in this turn, each in one place */
    void (*before_store)(u64 page); /* is told the host's address of a page with code that is stored to; or 0 */
    struct stored stored[STORED]; /* each page in one place */
    u64 data_page;      /* the engine's number of a page that is taken for data, and IS_SET */

    u64 shares_memory;  /* with other threads, to which locked instructions are atomic */
    u64 plain_count, plain[PLAIN]; /* the linear addresses of those that are not */

    u64 is_unmapping;   /* the engine takes memory away, and forgets all of its TLB behind that */

    u64 looked;         /* time-stamp counter when a PAUSE had it look for interrupts */
    u64 paused, spins;  /* the same of its last PAUSE, and of the first of those that followed each other closely */
    u64 clock_port;     /* the only one that was read since then */
    u64 rests;

    /* A delivery under way (delivery.c). */
    u32 delivering;     /* 1 more than its vector */
    u32 int_length;     /* of the INT instruction that asked for it, or 0 */
    u32 idt_moved;      /* by how much the table of interrupts is moved for a #VC */
    u32 stack_moved;    /* whether the next two are what was before */
    u64 stack_base, stack_pointer;

    /* What this processor does not know of CR4 and EFER, and bits of physical addresses that it does not have. */
    u64 cr4_reserved, efer_reserved, address_reserved;
    u64 wide_bits;      /* bits of physical addresses that it has and the engine has not (tlb.c) */
    u64 table_bits, entry_bits; /* those of the page table that is being read, and of the entry that was read last */
    u64 is_walking;
    u64 leaf;           /* the entry of a page table that was read last */
    u64 local_count;    /* LOCALS + 1 if there are more than were noted */
    u64 locals[LOCALS]; /* page and mode */
    u64 has_large;
    u64 large[LARGE_REGIONS / 64];
    u64 level_count;    /* of the walk that goes on; LEVELS + 1 if not all are known */
    struct walked levels[LEVELS];
    u64 walked_count;   /* WALKED + 1 if not all are known */
    struct walked walked[WALKED];
    u16 walked_places[WALKED_PLACES]; /* by a hash, where in the list an entry is */

    struct known_blocks *blocks;
    void *context;      /* the engine's TCGContext */
    u32 stamp, flushed; /* stamp: changes of the TLB; flushed: the engine's count when the blocks were forgotten */
    u32 page_stamps[PAGE_STAMPS]; /* the same of pages, by a hash */

    /* Python */
    int (*on_acknowledge)(void);
    u32 (*on_store)(void);
    void (*on_pseudo)(void *uc, u32 vector, void *user);
    u32 (*on_instruction)(void);
    u32 (*read_port)(u32 port, u32 size);
    void (*write_port)(u32 port, u32 size, u32 value);
    u64 (*read_mmio)(u64 gpa, u32 size);
    void (*write_mmio)(u64 gpa, u32 size, u64 value);
    u32 (*on_msr)(u32 index, u32 is_write, u64 *value); /* nonzero: #GP */
    void (*on_cpuid)(u32 leaf, u32 index, u32 *answer);
    int (*on_spin)(void); /* lets time pass; whether an interrupt may be due. 0 where time is the host's */
    u64 pauses;

    u64 served[SERVED_KINDS];
    u64 vc[EXIT_CODES]; /* #VCs, by exit code */
    struct ram ram[RAMS];
    u64 ram_count;
    u64 ghcb_gpa;
    u8 *ghcb;           /* where the host has it; 0 when memory was mapped anew */
    u64 reads_table;    /* the engine reads page tables: what nobody backs reads as 0, as KVM's walk finds nothing there */
    u64 port_at;        /* where in the engine's code an IN or OUT is that is being answered; or 0 */
    u64 undo_port;      /* who answered IN or OUT wants it undone: the guest stands before it again */
    struct leaf leaves[CPUID_LEAVES];
    struct flash flash;

    /* Interrupts (interrupts.c) */
    struct lapic *lapic; /* or 0 */
    u64 kicked;          /* something may be due, and nobody has looked yet */
    int (*on_kick)(void); /* raises what is due; whether the CPU is wanted */
    u64 sites[SITES];    /* instructions that end their block, and where they end */
    u64 site_ends[SITES];
    u64 last[SITES];     /* places in the engine's code that are known to belong to such */

    /* What a debugger of the host's waits for, 1 more than the vector of what came (delivery.c), and before which
       instructions, by linear addresses (translate.c). Data is watched by guest-physical addresses; a bit for each hit. */
    u32 debug, debugged;
    u64 breakpoint_count, breakpoints[BREAKPOINTS];
    u64 watch_count, watch_hits;
    struct watch { u64 start, end, sees_reads; } watches[BREAKPOINTS];
};

#define HIDDEN __attribute__((visibility("hidden")))
#define EXPORT __attribute__((visibility("default"), used))
#define NEVER_RETURNS __builtin_unreachable()
/* The engine takes a helper's return address for the place in its code that it has to go back to, so a hook must jump to
   the function whose place it took. gcc before version 15 cannot promise that, but does it; install.c looks. */
#if defined(__has_attribute)
#if __has_attribute(musttail)
#define TAIL __attribute__((musttail)) return
#endif
#endif
#ifndef TAIL
#define TAIL return
#endif
#define CALLER ((uintptr_t)__builtin_return_address(0))

/* e_NAME is the engine's function, h_NAME the one in its place. */
#define DECLARE(name, result, arguments) HIDDEN extern result(*e_##name) arguments;
CALLED(DECLARE)
REPLACED(DECLARE)
IN_CLASS(DECLARE)
HELPERS(DECLARE)
#define DECLARE_HELPER(name, code) HIDDEN extern u64 (*e_##name)(void *, u64, u64);
VC_HELPERS(DECLARE_HELPER)
IN_HELPERS(DECLARE_HELPER)
OUT_HELPERS(DECLARE_HELPER)
HIDDEN extern void (*e_siglongjmp)(void *, int);
HIDDEN extern void (*e_abort)(void);
HIDDEN extern void (*e_exit)(int);

#define PROTOTYPE(name, result, arguments) HIDDEN result h_##name arguments;
REPLACED(PROTOTYPE)
IN_CLASS(PROTOTYPE)
HELPERS(PROTOTYPE)
#define PROTOTYPE_HELPER(name, code) HIDDEN u64 h_##name(void *, u64, u64);
VC_HELPERS(PROTOTYPE_HELPER)
IN_HELPERS(PROTOTYPE_HELPER)
OUT_HELPERS(PROTOTYPE_HELPER)
HIDDEN void h_siglongjmp(void *, int);
HIDDEN void h_exit(int);
EXPORT void hooks_abort(void);

HIDDEN struct cpu *find_cpu(u64 cpu);
static inline struct cpu *cpu_of_env(void *env) { return find_cpu((u64)env - CPU_ENV); }

/* Raise an exception of the instruction whose code is at ra; 0 where RIP is up to date. */
static inline __attribute__((noreturn)) void raise(struct cpu *c, i32 vector, i32 code, uintptr_t ra) {
    e_raise_exception_err_ra((void *)c->env, vector, code, ra);
    NEVER_RETURNS;
}

/* Whether a linear address is one, with four levels of page tables or five. */
static inline int is_canonical(void *env, u64 address) {
    int unused = AT(u64, env, ENV_CR4) & 1 << 12 ? 64 - 57 : 64 - 48;
    return (u64)((int64_t)(address << unused) >> unused) == address;
}

/* Whether the processor says that it is AMD's, or Hygon's, which is the same. */
static inline int is_amd(void *env) {
    u32 vendor = AT(u32, env, ENV_VENDOR);
    return vendor == 0x68747541 /* Auth */ || vendor == 0x6f677948 /* Hygo */;
}

HIDDEN void begin_delivery(struct cpu *c, u32 vector, u32 int_length);
HIDDEN void end_delivery(struct cpu *c);
HIDDEN void abandon_delivery(struct cpu *c);
HIDDEN void move_stack(struct cpu *c);
HIDDEN void restore_stack(struct cpu *c);
HIDDEN void execute_here(struct cpu *c);
HIDDEN u32 with_operand(u32 bit, u32 window);
HIDDEN const u32 *cpuid(struct cpu *c, u32 leaf, u32 index);
HIDDEN u8 *host_address(struct cpu *c, u64 gpa, u64 size);
HIDDEN u64 read_msr(struct cpu *c, u32 index);
HIDDEN void write_msr(struct cpu *c, u32 index, u64 value);
HIDDEN int serve_ghcb(struct cpu *c);
HIDDEN void hand_over(struct cpu *c);
HIDDEN long system_call(long number, u64 first, u64 second, u64 third, u64 fourth);
HIDDEN void sleep_for(u64 nanoseconds); /* less than a second */
HIDDEN void stop_engine(struct cpu *c);
EXPORT void hooks_kick(struct cpu *c);
HIDDEN void look_for_interrupts(struct cpu *c);
HIDDEN void write_task_priority(struct cpu *c, u64 value);
HIDDEN u32 read_port(struct cpu *c, u32 port, u32 size);
HIDDEN void write_port(struct cpu *c, u32 port, u32 size, u32 value);
HIDDEN u64 read_mmio(struct cpu *c, u64 gpa, u32 size);
HIDDEN void write_mmio(struct cpu *c, u64 gpa, u32 size, u64 value);
HIDDEN int rdmsr_of_apic(struct cpu *c, uintptr_t caller);
HIDDEN int wrmsr_of_apic(struct cpu *c, uintptr_t caller);
HIDDEN int apic_reads_msr(struct cpu *c, u32 index, u64 *value, int *is_refused);
HIDDEN int apic_writes_msr(struct cpu *c, u32 index, u64 value, int *is_refused);
HIDDEN int is_executing(struct cpu *c);
HIDDEN char *fast_entry(void *cpu, int mode, u64 va);
HIDDEN char *victim_entry(void *cpu, int mode, int number);
HIDDEN int mode_of(void *env);
HIDDEN void call_with_cpu(struct cpu *c, void *function, u32 value);
HIDDEN void translate_repetition(struct cpu *c, u64 at, u32 window);
HIDDEN void note_walk(struct cpu *c);
HIDDEN int walks_are_as_before(struct cpu *c);
HIDDEN void forget_walks(struct cpu *c);
HIDDEN void begin_turn(struct cpu *c);
HIDDEN void unmark_data(struct cpu *c);
HIDDEN void go_on(struct cpu *c);
HIDDEN void be_last_in_block(struct cpu *c, u64 gpa);
HIDDEN void end_block(struct cpu *c);
HIDDEN void end_block_at_site(struct cpu *c, u64 pc);
HIDDEN void choose_atomics(struct cpu *c, u64 pc);
HIDDEN int flash_write(struct cpu *c, u64 gpa, u32 size, u64 value);
HIDDEN int flash_read(struct cpu *c, u64 gpa, u32 size, u64 *value);
