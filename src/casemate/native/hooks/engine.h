/* All that is known of the engine, Unicorn 2.1.4 for x86-64 Linux: offsets in its structures, and its functions.

   No header of the engine is used. install.c admits the one build that these numbers were taken from, by its build id.
   For a new version take the numbers anew; each says in which function's disassembly (objdump -d) it stands. Names are
   those of the engine's structures. */
#pragma once
#include <stdint.h>

typedef uint64_t u64;
typedef uint32_t u32;
typedef int32_t i32;
typedef int64_t i64;
typedef uint16_t u16;
typedef uint8_t u8;

/* The field of that type at an offset. */
#define AT(type, base, offset) (*(type *)((char *)(base) + (offset)))

/* struct uc_struct */
#define UC_CPU 0x1b8             /* cpu: first load of helper_check_exit_request */
#define UC_TCG 0x300             /* tcg_ctx: cpu_io_recompile, second load */
#define UC_NO_EXIT_REQUEST 0x7f2 /* no_exit_request: the byte that check_exit_request compares */

/* CPUState. CPUX86State follows at CPU_ENV, and CPUNegativeOffsetState, with the TLB, is right below it. */
#define CPU_INTERRUPT_REQUEST 0x1c  /* interrupt_request: x86_cpu_exec_interrupt */
#define CPU_JUMP_CACHE 0x138        /* tb_jmp_cache, 4096 addresses: tb_flush_jmp_cache, its stores */
#define JUMP_CACHE_BYTES 0x8000
#define CPU_MEM_IO_PC 0x8178        /* mem_io_pc: helper_le_stl_mmu, the store before its jump to memory_region_dispatch_write */
#define CPU_EXCEPTION_INDEX 0x81a0  /* exception_index: first load of x86_cpu_do_interrupt */
#define CPU_UC 0x81a8               /* uc: tlb_set_dirty's caller notdirty_write */
#define CPU_CLASS 0x81b0            /* cc: tlb_set_page_with_attrs, start */
#define CPU_ENV 0x8a50              /* env: last addition of x86_cpu_do_interrupt before it jumps to do_vmexit */
#define CPU_EXIT_WORD (CPU_ENV - 0x10) /* icount_decr: second load of helper_check_exit_request; negative to stop */
#define CPU_RETURN_ADDRESS 0xa008   /* retaddr of X86CPU's env: x86_cpu_tlb_fill stores its last argument there */
/* CPUClass: tlb_fill as it is for UC_TLB_CPU, and what is in use. */
#define CLASS_TLB_FILL 0x48         /* probe_access, the call through the class */
#define CLASS_TLB_FILL_OF_CPU 0x50
#define CLASS_EXEC_INTERRUPT 0x90   /* cpu_exec_interrupt: cpu_exec, the call behind its look at interrupt_request */

/* CPUX86State */
#define ENV_RAX 0x00
#define ENV_RCX 0x08
#define ENV_RDX 0x10
#define ENV_RBX 0x18
#define ENV_RSP 0x20
#define ENV_RSI 0x30
#define ENV_RDI 0x38
#define ENV_R11 0x58
#define ENV_RIP 0x80
#define ENV_EFLAGS 0x88
#define ENV_CC_SRC 0x98 /* cc_src: the stores of helper_rdrand */
#define ENV_CC_OP 0xa8  /* cc_op: helper_cmpxchg16b, its argument for cpu_cc_compute_all */
#define ENV_DF 0xac     /* df, 1 or -1: what translated code of STOS adds to RDI */
#define ENV_HFLAGS 0xb0 /* hflags: cpu_ldub_code, first load */
#define ENV_ES 0xb8
#define ENV_CS 0xd0     /* segs[R_CS]; segments are 24 bytes, in the order ES, CS, SS, DS, FS, GS, LDT, TR, GDT, IDT */
#define ENV_SS 0xe8
#define ENV_DS 0x100
#define ENV_TR 0x160
#define ENV_IDT 0x190
#define ENV_CR0 0x1a8
#define ENV_CR2 0x1b8
#define ENV_CR3 0x1c0 /* cr[3]: cpu_x86_update_cr3, first store */
#define ENV_CR4 0x1c8 /* cr[4]: cpu_x86_update_cr4, last store */
#define ENV_EFER 0x250       /* efer and the four below: helper_syscall and helper_rdmsr */
#define ENV_SYSENTER_CS 0x12c0 /* and the two below: helper_sysexit and helper_rdmsr */
#define ENV_SYSENTER_ESP 0x12c8
#define ENV_SYSENTER_EIP 0x12d0
#define ENV_STAR 0x12d8
#define ENV_LSTAR 0x12e8
#define ENV_CSTAR 0x12f0
#define ENV_FMASK 0x12f8
#define ENV_OLD_EXCEPTION 0x1578 /* old_exception: raise_interrupt2, its look for a double fault */
#define ENV_TPR 0x15b4 /* v_tpr, four bits: helper_write_crN */
#define ENV_XCR0 0x1328 /* xcr0: helper_xgetbv */
#define ENV_X87_TOP 0x25c  /* fpstt, fptags: helper_enter_mmx, its stores */
#define ENV_X87_TAGS 0x264 /* a byte for each register, 0 where it is full */
#define ENV_X87_REGISTERS 0x270 /* fpregs: helper_fmov_STN_ST0 */
#define X87_REGISTERS_BYTES 0x80
#define ENV_X87_FLUSH 0x30c /* flush_to_zero of fp_status, and of sse_status: update_mxcsr_status stores the first, and the */
#define ENV_SSE_FLUSH 0x32c /* byte behind the second */
#define ENV_ERROR_CODE 0x1508 /* error_code: second load of x86_cpu_do_interrupt, less CPU_ENV */
#define ENV_IS_INT 0x150c     /* exception_is_int: third load there */
#define ENV_VENDOR 0x15f0     /* cpuid_vendor1: cpu_x86_cpuid */
#define SEGMENT_SELECTOR 0
#define SEGMENT_BASE 8
#define SEGMENT_LIMIT 16
#define SEGMENT_FLAGS 20
/* Bits of hflags; public in the documentation of the translator as HF_*_MASK. */
#define HIDDEN_CPL 3u
#define HIDDEN_INHIBIT_IRQ (1u << 3)
#define HIDDEN_CS32 (1u << 4)
#define HIDDEN_SS32 (1u << 5)
#define HIDDEN_ADDSEG (1u << 6)
#define HIDDEN_PE (1u << 7)
#define HIDDEN_LMA (1u << 14)
#define HIDDEN_CS64 (1u << 15)
#define HIDDEN_SMAP (1u << 23)
/* Bits of EFLAGS that a block is translated for: helper_lookup_tb_ptr, its first AND. */
#define EFLAGS_OF_BLOCK 0x73100u

/* CPUTLB: for each mode a fast table, and eight entries that were pushed out of it. */
#define MODES 3
#define FAST_TLB(mode) (CPU_ENV - 0x40 + 0x10 * (mode))      /* mask and address: tlb_set_dirty, first loads */
#define VICTIM_TLB(mode) (CPU_ENV - 0x840 + 0x2b8 * (mode))  /* tlb_set_dirty, from its fourth comparison on */
#define VICTIMS 8
#define USED_ENTRIES(mode) (VICTIM_TLB(mode) - 0x10) /* n_used_entries: tlb_set_page_with_attrs, its last addition */
#define ENTRY_BYTES 0x40
#define ENTRY_READ 0      /* addr_read and addr_code: tlb_set_page_with_attrs, its last stores */
#define ENTRY_CODE 0x10
#define ENTRY_WRITE 8     /* addr_write: the page, or -1, and flags in the bits below; tlb_set_dirty */
#define ENTRY_PHYSICAL 0x18 /* paddr: tlb_set_page_with_attrs, its last stores */
#define ENTRY_ADDEND 0x20 /* addend: what translated code adds to an address that it found in the entry */
#define ENTRY_SPARE 0x28  /* the engine leaves the rest alone: there, its last store but one is at 0x20; copies are of all */
#define WRITE_IS_SLOW 0x400u /* TLB_NOTDIRTY: tlb_reset_dirty_by_vaddr sets it */
#define WRITE_IS_SPECIAL 0xe40u /* TLB_INVALID, NOTDIRTY, MMIO, DISCARD_WRITE: what it leaves alone */

/* TCGContext, TCGOp, DisasContextBase, TranslatorOps and TranslationBlock */
#define TCG_CFLAGS 0x64     /* tb_cflags: tcg_gen_mb, its test, which is of the bit */
#define TCG_IS_PARALLEL (1u << 19)
#define TCG_INVALIDATED 0xd8 /* tb_phys_invalidate_count: do_tb_phys_invalidate, its only addition */
#define TCG_FLUSHED 0x98d0  /* tb_flush_count: tb_flush, its last addition */
#define TCG_CPU_ENV 0x98f0  /* cpu_env: a temporary, as an offset from the context; helper calls of the translator */
#define TCG_UC 0x9970       /* uc: first load of check_exit_request */
#define TCG_LAST_OP 0x7390  /* ops.tqh_circ.tql_prev: translator_loop */
#define LINK_PREVIOUS 8     /* QTailQLink: tql_next, tql_prev */
#define OP_LINK 8           /* link: it follows a word of bit fields */
#define OP_ARGUMENTS 0x18   /* args */
#define OP_SET_LABEL 1      /* INDEX_op_set_label, ld_i32: gen_intermediate_code, where it opens a block */
#define OP_LD_I32 13
#define CONDITION_GE 3      /* TCG_COND_GE */
#define LABEL_PRESENT 1     /* TCGLabel, first bit: gen_set_label */
#define BLOCK_PC_NEXT 0x10  /* DisasContextBase.pc_next: translator_loop, after it called the operation at 0 */
#define BLOCK_CC_OP 0x74    /* DisasContext.cc_op: i386_tr_insn_start, the second argument that it gives to tcg_gen_op2 */
#define BLOCK_RIP_OFFSET 0xb4 /* DisasContext.rip_offset: disas_insn, its first store of 0 there */
#define BLOCK_INSTRUCTIONS 0x1c /* num_insns, with the one being translated; max_insns: translator_loop, before that */
#define BLOCK_LIMIT 0x20
#define OPERATIONS 7        /* of TranslatorOps; the first is init_disas_context */
#define TB_FLAGS 0x10       /* flags: tb_gen_code stores its fourth argument there */

/* MemoryRegionOps of uc_mmio_map: the most bytes that are asked for at once, 0 for four: memory_region_dispatch_read. */
#define REGION_MAX_ACCESS 0x44
/* TranslationBlock: pc, cs_base, size and icount: translator_loop stores the last two at its end */
#define TB_PC 0x00
#define TB_CS_BASE 0x08
#define TB_SIZE 0x14
#define TB_COUNT 0x16
#define TB_CFLAGS 0x18      /* cflags: do_tb_phys_invalidate sets the bit */
#define TB_IS_INVALID (1u << 18)
#define TB_CODE 0x20        /* tc.ptr: what helper_lookup_tb_ptr returns */
#define TB_SECOND_PAGE 0x50 /* page_addr[1], -1 for none: tb_lookup_cmp */

/* Functions that are called. All are exported with _x86_64 at the end of their names. */
#define CALLED(X) \
    X(raise_exception_err_ra, void, (void *env, i32 vector, i32 code, uintptr_t ra)) \
    X(cpu_loop_exit, void, (void *cpu)) \
    X(cpu_restore_state, int, (void *cpu, uintptr_t ra, int will_exit)) \
    X(tb_flush, void, (void *cpu)) \
    X(cpu_io_recompile, void, (void *cpu, uintptr_t ra)) \
    X(tcg_tb_lookup, void *, (void *context, uintptr_t ra)) \
    X(tb_phys_invalidate, void, (void *context, void *block, i64 page)) \
    X(tlb_flush, void, (void *cpu)) \
    X(tb_invalidate_phys_range, void, (void *uc, u64 start, u64 end)) \
    X(qemu_ram_addr_from_host, u64, (void *uc, void *host)) \
    X(qemu_map_ram_ptr, void *, (void *uc, void *block, u64 address)) \
    X(helper_read_eflags, u64, (void *env)) \
    X(helper_write_eflags, void, (void *env, u64 value, u32 mask)) \
    X(x86_cpu_do_interrupt, void, (void *cpu)) \
    X(tcg_temp_new_internal, void *, (void *s, int type, int local)) \
    X(tcg_temp_free_internal, void, (void *s, void *temp)) \
    X(tcg_gen_op1, void, (void *s, int op, uintptr_t a)) \
    X(tcg_gen_op3, void, (void *s, int op, uintptr_t a, uintptr_t b, uintptr_t c)) \
    X(tcg_gen_brcond_i32, void, (void *s, int cond, uintptr_t a, uintptr_t b, void *label)) \
    X(gen_new_label, void *, (void *s)) \
    X(tcg_const_i32, uintptr_t, (void *s, i32 value)) \
    X(tcg_const_i64, uintptr_t, (void *s, u64 value)) \
    X(helper_check_exit_request, void, (void *uc, u32 kind))

/* Functions that the engine calls through its PLT, so that ours can take their place. */
#define REPLACED(X) \
    X(tlb_set_page_with_attrs, void, (void *cpu, u64 va, u64 pa, u32 attrs, int prot, int mmu, u64 size)) \
    X(tlb_set_dirty, void, (void *cpu, u64 va)) \
    X(update_mxcsr_status, void, (void *env)) \
    X(tlb_flush_by_mmuidx, void, (void *cpu, u16 modes)) \
    X(tlb_flush_page_by_mmuidx, void, (void *cpu, u64 va, u16 modes)) \
    X(tb_flush_jmp_cache, void, (void *cpu, u64 va)) \
    X(cpu_x86_update_cr3, void, (void *env, u64 value)) \
    X(tlb_reset_dirty_by_vaddr, void, (void *cpu, u64 start, u64 length)) \
    X(tb_invalidate_phys_page_fast, void, (void *uc, void *pages, u64 start, int length, uintptr_t ra)) \
    X(x86_ldl_phys, u32, (void *cpu, u64 address)) \
    X(x86_ldq_phys, u64, (void *cpu, u64 address)) \
    X(x86_stl_phys_notdirty, void, (void *cpu, u64 address, u32 value)) \
    X(do_interrupt_x86_hardirq, void, (void *env, int vector, int hardware)) \
    X(cpu_abort, void, (void *cpu, const char *format)) \
    X(cpu_ldub_code, u32, (void *env, u64 address)) \
    X(cpu_loop_exit_atomic, void, (void *cpu, uintptr_t ra)) \
    X(tcg_gen_callN, void, (void *s, void *function, void *result, int count, void **arguments)) \
    X(translator_loop, void, (void *operations, void *block, void *cpu, void *tb, int limit)) \
    X(tb_gen_code, void *, (void *cpu, u64 pc, u64 cs_base, u32 flags, int cflags)) \
    X(memory_region_init_io, void, (void *uc, void *region, void *operations, void *opaque, u64 size))

/* CMPXCHG8B and CMPXCHG16B, which the engine executes so with LOCK, too: ours are told how the flags are kept where they are called. */
#define CMPXCHG_HELPERS(X) \
    X(helper_cmpxchg8b_unlocked, void, (void *env, u64 at, u32 cc_op)) \
    X(helper_cmpxchg16b_unlocked, void, (void *env, u64 at, u32 cc_op))

/* What numeric.c mends. */
#define OF_VECTORS (void *env, void *to, void *from)
#define SSSE3_HELPERS(X) \
    X(helper_pshufb_mmx, void, OF_VECTORS) X(helper_phaddw_mmx, void, OF_VECTORS) X(helper_phaddd_mmx, void, OF_VECTORS) \
    X(helper_phaddsw_mmx, void, OF_VECTORS) X(helper_pmaddubsw_mmx, void, OF_VECTORS) X(helper_phsubw_mmx, void, OF_VECTORS) \
    X(helper_phsubd_mmx, void, OF_VECTORS) X(helper_phsubsw_mmx, void, OF_VECTORS) X(helper_psignb_mmx, void, OF_VECTORS) \
    X(helper_psignw_mmx, void, OF_VECTORS) X(helper_psignd_mmx, void, OF_VECTORS) X(helper_pmulhrsw_mmx, void, OF_VECTORS) \
    X(helper_pabsb_mmx, void, OF_VECTORS) X(helper_pabsw_mmx, void, OF_VECTORS) X(helper_pabsd_mmx, void, OF_VECTORS)
#define HORIZONTAL_HELPERS(X) \
    X(helper_phaddw_xmm, void, OF_VECTORS) X(helper_phaddd_xmm, void, OF_VECTORS) X(helper_phaddsw_xmm, void, OF_VECTORS) \
    X(helper_phsubw_xmm, void, OF_VECTORS) X(helper_phsubd_xmm, void, OF_VECTORS) X(helper_phsubsw_xmm, void, OF_VECTORS)
#define NUMERIC_HELPERS(X) \
    SSSE3_HELPERS(X) HORIZONTAL_HELPERS(X) \
    X(helper_pcmpestri_xmm, void, (void *env, void *first, void *second, u32 control)) \
    X(helper_pcmpestrm_xmm, void, (void *env, void *first, void *second, u32 control)) \
    X(helper_palignr_mmx, void, (void *env, void *to, void *from, i32 count)) \
    X(helper_emms, void, (void *env)) \
    X(helper_fmov_STN_ST0, void, (void *env, i32 number)) \
    X(helper_fisttl_ST0, i32, (void *env)) \
    X(helper_fisttll_ST0, i64, (void *env)) \
    X(helper_fcomi_ST0_FT0, void, (void *env)) \
    X(helper_fucomi_ST0_FT0, void, (void *env))

/* Functions that translated code calls: ours are put into the calls when they are translated. */
#define HELPERS(X) \
    X(helper_rdmsr, void, (void *env)) \
    X(helper_wrmsr, void, (void *env)) \
    X(helper_cpuid, void, (void *env)) \
    X(helper_syscall, void, (void *env, i32 length)) \
    X(helper_sysenter, void, (void *env, i32 length)) \
    X(helper_set_dr, void, (void *env, int number, u64 value)) \
    X(helper_get_dr, u64, (void *env, int number)) \
    X(helper_rdrand, u64, (void *env)) \
    X(helper_read_crN, u64, (void *env, int number)) \
    X(helper_write_crN, void, (void *env, int number, u64 value)) \
    X(helper_cr4_testbit, void, (void *env, u32 bit)) \
    X(helper_iret_real, void, (void *env, int shift)) \
    X(helper_raise_interrupt, void, (void *env, int vector, int length)) \
    X(helper_into, void, (void *env, int length)) \
    X(helper_pause, void, (void *env, int length)) \
    CMPXCHG_HELPERS(X) \
    NUMERIC_HELPERS(X) \
    X(helper_lookup_tb_ptr, void *, (void *env))

/* The same, by name and bytes: IN and OUT. */
#define IN_HELPERS(X) X(helper_inb, 1) X(helper_inw, 2) X(helper_inl, 4)
#define OUT_HELPERS(X) X(helper_outb, 1) X(helper_outw, 2) X(helper_outl, 4)

/* The same, of instructions that raise #VC and are else the engine's: name and exit code. */
#define VC_HELPERS(X) X(helper_monitor, 0x8a) X(helper_mwait, 0x8b) X(helper_rdpmc, 0x6f)

/* In the class of each CPU, on the heap. */
#define IN_CLASS(X) \
    X(x86_cpu_tlb_fill, int, (void *cpu, u64 va, int size, int kind, int mmu, int probe, uintptr_t ra)) \
    X(x86_cpu_exec_interrupt, int, (void *cpu, int what))
