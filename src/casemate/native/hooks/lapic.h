/* One local APIC, as the guest's accesses find it and as Python does. Python's mirror is devices/lapic.py; a test compares
   the sizes. */
#pragma once
#include "engine.h"

/* Offsets of registers in the page (Intel SDM volume 3A, 12.4.1). */
enum {
    APIC_ID = 0x020, APIC_VERSION = 0x030, APIC_TPR = 0x080, APIC_PPR = 0x0a0, APIC_EOI = 0x0b0, APIC_LDR = 0x0d0,
    APIC_DFR = 0x0e0, APIC_SVR = 0x0f0, APIC_ISR = 0x100, APIC_TMR = 0x180, APIC_IRR = 0x200, APIC_ESR = 0x280,
    APIC_ICR_LOW = 0x300, APIC_ICR_HIGH = 0x310, APIC_LVT_TIMER = 0x320, APIC_LVT_THERMAL = 0x330,
    APIC_LVT_PERFORMANCE = 0x340, APIC_LVT_LINT0 = 0x350, APIC_LVT_LINT1 = 0x360, APIC_LVT_ERROR = 0x370,
    APIC_TIMER_INITIAL = 0x380, APIC_TIMER_CURRENT = 0x390, APIC_TIMER_DIVIDE = 0x3e0, APIC_SELF_IPI = 0x3f0,
    APIC_END = 0x400
};

/* What an APIC offers, and what waits for the CPU beside interrupts. */
enum { HAS_X2APIC = 1, HAS_DEADLINE = 2, SUPPRESSES_EOI = 4 };
enum { EVENT_NMI = 1, EVENT_INIT = 2, EVENT_STARTUP = 4 };

enum { MSR_APIC_BASE = 0x1b, MSR_TSC_DEADLINE = 0x6e0, MSR_X2APIC = 0x800, MSR_X2APIC_END = 0x900 };

enum { EDGE = 0x100 }; /* no vector */

/* The vCPU's thread has it to itself but for requests, trigger modes and what stands below `events`: other threads set
   these, so they change by atomic operations. */
struct lapic {
    u32 page[APIC_END / 4]; /* as KVM_GET_LAPIC has it: each register in the first 4 of 16 bytes */
    u64 *base;              /* IA32_APIC_BASE: own_base, or the register of the CPU that it belongs to */
    u64 own_base;
    u64 deadline;           /* IA32_TSC_DEADLINE */
    u64 accesses;           /* of the guest, by MMIO, that Python did not see */
    u32 id;                 /* as x2APIC has it */
    u32 features;
    u32 errors;             /* since software last asked for them */
    u32 events;
    u32 ext_int;            /* the 8259's INT */
    u32 ext_int_passed;     /* an input of the I/O APIC passes it on, whatever LINT0 says */
    u32 startup_vector;     /* of EVENT_STARTUP: the page that the CPU is to start at */
    u32 hears_edges;        /* on_eoi is told the ends of edge-triggered interrupts, too, as EDGE */
    struct lapic *next;     /* those of a guest are a ring */

    /* Python */
    u32 (*read_timer)(void);                   /* raise what is due; the current count */
    void (*write_timer)(u32 which, u64 value); /* an offset in the page, or MSR_TSC_DEADLINE */
    void (*on_eoi)(u32 vector);                /* of a level-triggered interrupt, or EDGE */
    void (*on_message)(void);                  /* another CPU, or a device, has sent something; or 0 */
};

#define WITHIN __attribute__((visibility("hidden")))
#define FOR_PYTHON __attribute__((visibility("default"), used))

WITHIN int lapic_is_on(const struct lapic *l);
WITHIN int lapic_covers(const struct lapic *l, u64 gpa);
WITHIN int lapic_wants_cpu(const struct lapic *l);

/* What became of an access to a model-specific register. */
enum { NOT_OF_APIC, DONE, REFUSED };
WITHIN int lapic_read_msr(struct lapic *l, u32 index, u64 *value);
WITHIN int lapic_write_msr(struct lapic *l, u32 index, u64 value);

FOR_PYTHON u32 lapic_read(struct lapic *l, u32 offset, u32 size);
FOR_PYTHON int lapic_write(struct lapic *l, u32 offset, u32 size, u32 value);
