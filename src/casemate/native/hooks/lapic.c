/* The local APIC's registers and its priorities (Intel SDM volume 3A, chapter 12; AMD APM volume 2, chapter 16).

   Its timer and the I/O APIC are Python's, and called for. Nothing here knows the engine: interrupts.c asks after each
   access whether the CPU is wanted. */
#include "lapic.h"

enum { FIXED = 0, LOWEST_PRIORITY = 1, SMI = 2, NMI = 4, INIT = 5, STARTUP = 6, EXT_INT = 7 };
enum { MODE_SHIFT = 8, MODE = 7 << MODE_SHIFT, MASKED = 1 << 16, TIMER_MODE = 3 << 17, DEADLINE_MODE = 2 << 17 };
enum { SVR_ENABLED = 1 << 8, SVR_FOCUS = 1 << 9, SVR_SUPPRESS_EOI = 1 << 12 };
enum { ILLEGAL_SEND = 1 << 5, ILLEGAL_RECEIVE = 1 << 6, ILLEGAL_REGISTER = 1 << 7 };
enum { ICR_LOGICAL = 1 << 11, ICR_ASSERT = 1 << 14, ICR_LEVEL = 1 << 15, ICR_WRITABLE = 0xccfff };
enum { SHORTHAND_SELF = 1 << 18 };
enum { BASE_BSP = 1 << 8, BASE_X2APIC = 1 << 10, BASE_ENABLED = 1 << 11, BASE_RESERVED = 0x2ff };
enum { PAGE = 4096, PHYSICAL_BITS = 40, FIRST_LEGAL_VECTOR = 16 };
enum { SIX_ENTRIES = 0x50014, DIRECTED_EOI = 1 << 24 };
#define BASE_AT_RESET 0xfee00000ull

static u32 *reg(struct lapic *l, u32 offset) { return &l->page[offset / 4]; }
static u32 value_of(const struct lapic *l, u32 offset) { return l->page[offset / 4]; }
int lapic_is_on(const struct lapic *l) { return !!(*l->base & BASE_ENABLED); }
static int is_x2apic(const struct lapic *l) { return !!(*l->base & BASE_X2APIC); }
static int is_enabled(const struct lapic *l) { return lapic_is_on(l) && value_of(l, APIC_SVR) & SVR_ENABLED; }

/* ---- vectors: 256 bits from an offset on ---- */

static u32 *word_of(struct lapic *l, u32 first, u32 vector) { return reg(l, first + (vector >> 5) * 16); }
static u32 bit_of(u32 vector) { return 1u << (vector & 31); }
static void set(u32 *word, u32 bits) { __atomic_fetch_or(word, bits, __ATOMIC_SEQ_CST); }
static void clear(u32 *word, u32 bits) { __atomic_fetch_and(word, ~bits, __ATOMIC_SEQ_CST); }

/* The highest vector that is set, or -1. */
static i32 highest(const struct lapic *l, u32 first) {
    for (i32 word = 7; word >= 0; word--) {
        u32 bits = __atomic_load_n(&l->page[(first + word * 16) / 4], __ATOMIC_RELAXED);
        if (bits) return word * 32 + 31 - __builtin_clz(bits);
    }
    return -1;
}

static u32 priority(const struct lapic *l) {
    i32 in_service = highest(l, APIC_ISR);
    u32 task = value_of(l, APIC_TPR), served = in_service < 0 ? 0 : in_service & 0xf0;
    return (task & 0xf0) >= served ? task : served;
}

/* Whether a request outranks the processor's priority. */
FOR_PYTHON int lapic_pending(const struct lapic *l) {
    i32 request = highest(l, APIC_IRR);
    return request >= 0 && is_enabled(l) && (u32)request >> 4 > priority(l) >> 4;
}

/* Whether the 8259 gets through: by LINT0, or past an APIC that is disabled. */
FOR_PYTHON int lapic_takes_ext_int(const struct lapic *l) {
    return !is_enabled(l) || (value_of(l, APIC_LVT_LINT0) & (MASKED | MODE)) == EXT_INT << MODE_SHIFT;
}

int lapic_wants_cpu(const struct lapic *l) {
    return (l->ext_int && (l->ext_int_passed || lapic_takes_ext_int(l))) || lapic_pending(l);
}

/* Put the highest request into service and return its vector; the spurious one if none is pending. */
FOR_PYTHON u32 lapic_acknowledge(struct lapic *l) {
    if (!lapic_pending(l)) return value_of(l, APIC_SVR) & 0xff;
    u32 vector = highest(l, APIC_IRR);
    clear(word_of(l, APIC_IRR, vector), bit_of(vector));
    *word_of(l, APIC_ISR, vector) |= bit_of(vector);
    return vector;
}

/* ---- delivery ---- */

static void raise_local(struct lapic *l, u32 entry);

/* An interrupt is raised once per kind of error until software reads them out. */
static void report(struct lapic *l, u32 error) {
    if (l->errors & error) return;
    set(&l->errors, error);
    raise_local(l, APIC_LVT_ERROR);
}

static int accept_fixed(struct lapic *l, u32 vector, int is_level) {
    if (!is_enabled(l)) return 0;
    if (vector < FIRST_LEGAL_VECTOR) {
        report(l, ILLEGAL_RECEIVE);
        return 0;
    }
    if (is_level) set(word_of(l, APIC_TMR, vector), bit_of(vector));
    else clear(word_of(l, APIC_TMR, vector), bit_of(vector));
    set(word_of(l, APIC_IRR, vector), bit_of(vector));
    return 1;
}

/* A message for this APIC; nonzero if it was taken. SMIs have nowhere to go. Whether the CPU waits for a start-up is known to
   who runs it. */
FOR_PYTHON int lapic_accept(struct lapic *l, u32 mode, u32 vector, int is_level) {
    if (!lapic_is_on(l)) return 0;
    switch (mode) {
    case FIXED: case LOWEST_PRIORITY: return accept_fixed(l, vector & 0xff, is_level);
    case NMI: set(&l->events, EVENT_NMI); return 1;
    case INIT:
        clear(&l->events, EVENT_STARTUP); /* what comes before it is lost, what comes behind it starts the CPU */
        set(&l->events, EVENT_INIT);
        return 1;
    case STARTUP:
        l->startup_vector = vector & 0xff;
        set(&l->events, EVENT_STARTUP);
        return 1;
    }
    return 0;
}

/* An entry of the local vector table was triggered: an offset. The 8259's ExtINT is a level, and not here. */
static void raise_local(struct lapic *l, u32 offset) {
    u32 entry = value_of(l, offset), mode = entry >> MODE_SHIFT & 7;
    if (offset == APIC_LVT_TIMER || offset == APIC_LVT_ERROR) mode = FIXED;
    if (!(entry & MASKED)) lapic_accept(l, mode, entry & 0xff, 0);
}

FOR_PYTHON void lapic_raise_local(struct lapic *l, u32 offset) { raise_local(l, offset); }

/* Whether a destination means this APIC. 8 bits, unless it comes from an x2APIC's ICR. */
FOR_PYTHON int lapic_is_destination(const struct lapic *l, u32 destination, int is_logical, int is_wide) {
    u32 everybody = is_wide ? ~0u : 0xff, mine = value_of(l, APIC_LDR);
    if (destination == everybody) return 1;
    if (!is_logical) return destination == (is_x2apic(l) ? l->id : value_of(l, APIC_ID) >> 24);
    if (is_x2apic(l)) return mine >> 16 == destination >> 16 && mine & destination & 0xffff;
    mine >>= 24;
    if (value_of(l, APIC_DFR) >> 28) return !!(mine & destination);
    return (mine >> 4 == destination >> 4 || destination >> 4 == 0xf) && mine & destination & 0xf;
}

static int deliver_to(struct lapic *l, u32 mode, u32 vector, int is_level) {
    int is_taken = lapic_accept(l, mode, vector, is_level);
    if (is_taken && l->on_message) l->on_message();
    return is_taken;
}

/* A message on the bus of all APICs, of which `l` is one; nonzero if one took it. Lowest priority goes to the first of those
   that have the lowest. */
FOR_PYTHON int lapic_deliver(struct lapic *l, u32 mode, u32 vector, int is_level, u32 destination, int is_logical, int is_wide) {
    struct lapic *each = l, *lowest = 0;
    int is_taken = 0;
    do {
        if (lapic_is_destination(each, destination, is_logical, is_wide)) {
            if (mode != LOWEST_PRIORITY) is_taken |= deliver_to(each, mode, vector, is_level);
            else if (is_enabled(each) && (!lowest || priority(each) < priority(lowest))) lowest = each;
        }
        each = each->next;
    } while (each != l);
    return lowest ? deliver_to(lowest, mode, vector, is_level) : is_taken;
}

enum { TO_DESTINATION, TO_SELF, TO_ALL, TO_OTHERS }; /* shorthands */

static void send(struct lapic *l, u32 command, u32 destination) {
    u32 mode = command >> MODE_SHIFT & 7, vector = command & 0xff, shorthand = command >> 18 & 3;
    if (mode <= LOWEST_PRIORITY && vector < FIRST_LEGAL_VECTOR) {
        report(l, ILLEGAL_SEND);
        return;
    }
    if (mode == INIT && command & ICR_LEVEL && !(command & ICR_ASSERT)) return; /* only synchronizes arbitration */
    if (shorthand == TO_DESTINATION) {
        lapic_deliver(l, mode, vector, 0, destination, !!(command & ICR_LOGICAL), is_x2apic(l));
        return;
    }
    if (shorthand != TO_OTHERS) lapic_accept(l, mode, vector, 0);
    for (struct lapic *each = l->next; shorthand != TO_SELF && each != l; each = each->next) deliver_to(each, mode, vector, 0);
}

static void end_of_interrupt(struct lapic *l) {
    i32 vector = highest(l, APIC_ISR);
    if (vector < 0) return;
    *word_of(l, APIC_ISR, vector) &= ~bit_of(vector);
    int is_level = !!(*word_of(l, APIC_TMR, vector) & bit_of(vector));
    if (is_level && !(value_of(l, APIC_SVR) & SVR_SUPPRESS_EOI)) l->on_eoi(vector);
    if (!is_level && l->hears_edges) l->on_eoi(EDGE);
}

/* ---- registers ---- */

static u32 is_lvt(u32 offset) { return offset >= APIC_LVT_TIMER && offset <= APIC_LVT_ERROR; }

/* The bits that a write changes, of registers that only keep them. */
static u32 writable(const struct lapic *l, u32 offset) {
    switch (offset) {
    case APIC_ID: case APIC_LDR: return is_x2apic(l) ? 0 : 0xff000000;
    case APIC_ICR_HIGH: return is_x2apic(l) ? ~0u : 0xff000000;
    case APIC_TPR: return 0xff;
    case APIC_SVR: return 0xff | SVR_ENABLED | SVR_FOCUS | (l->features & SUPPRESSES_EOI ? SVR_SUPPRESS_EOI : 0);
    case APIC_ICR_LOW: return ICR_WRITABLE;
    case APIC_LVT_TIMER: return 0xff | MASKED | (l->features & HAS_DEADLINE ? TIMER_MODE : 1 << 17);
    case APIC_LVT_THERMAL: case APIC_LVT_PERFORMANCE: return 0x107ff;
    case APIC_LVT_LINT0: case APIC_LVT_LINT1: return 0x1a7ff;
    case APIC_LVT_ERROR: return 0x100ff;
    case APIC_TIMER_INITIAL: return ~0u;
    case APIC_TIMER_DIVIDE: return 0x0b;
    }
    return 0;
}

static u32 read_register(struct lapic *l, u32 offset) {
    switch (offset) {
    case APIC_PPR: return priority(l);
    case APIC_TIMER_CURRENT: return l->read_timer();
    }
    return offset < APIC_END ? value_of(l, offset) : 0;
}

static void mask_all(struct lapic *l) {
    for (u32 offset = APIC_LVT_TIMER; offset <= APIC_LVT_ERROR; offset += 16) *reg(l, offset) |= MASKED;
}

static void write_register(struct lapic *l, u32 offset, u32 value) {
    u32 kept = value & writable(l, offset);
    if (is_lvt(offset) && !(value_of(l, APIC_SVR) & SVR_ENABLED)) kept |= MASKED;
    switch (offset) {
    case APIC_EOI: end_of_interrupt(l); return;
    case APIC_DFR: *reg(l, offset) = value | 0x0fffffff; return;
    case APIC_ESR: *reg(l, offset) = __atomic_exchange_n(&l->errors, 0, __ATOMIC_SEQ_CST); return;
    case APIC_ICR_LOW:
        *reg(l, offset) = kept;
        send(l, kept, value_of(l, APIC_ICR_HIGH) >> (is_x2apic(l) ? 0 : 24));
        return;
    case APIC_LVT_TIMER: case APIC_TIMER_INITIAL: case APIC_TIMER_DIVIDE:
        l->write_timer(offset, kept);
        *reg(l, offset) = kept;
        return;
    case APIC_SVR:
        *reg(l, offset) = kept;
        if (!(kept & SVR_ENABLED)) mask_all(l);
        return;
    }
    if (writable(l, offset)) *reg(l, offset) = kept;
    else report(l, ILLEGAL_REGISTER);
}

/* A register, or bytes of it, at an offset in the page; reserved offsets read 0. */
u32 lapic_read(struct lapic *l, u32 offset, u32 size) {
    u32 value = offset & 0x0c ? 0 : read_register(l, offset & ~3);
    return size < 4 ? value >> 8 * (offset & 3) & ((1u << 8 * size) - 1) : value;
}

/* A register. Zero for other widths, which the manual leaves undefined. */
int lapic_write(struct lapic *l, u32 offset, u32 size, u32 value) {
    if (size != 4 || offset & 0x0f) return 0;
    write_register(l, offset, value);
    return 1;
}

/* Whether its page is there. */
int lapic_covers(const struct lapic *l, u64 gpa) {
    u64 base = *l->base;
    return !((gpa ^ base) & -(u64)PAGE) && lapic_is_on(l) && !is_x2apic(l);
}

/* ---- model-specific registers ---- */

static int is_in_x2apic(u32 offset) {
    switch (offset) {
    case APIC_ID: case APIC_VERSION: case APIC_TPR: case APIC_PPR: case APIC_EOI: case APIC_LDR: case APIC_SVR:
    case APIC_ESR: case APIC_ICR_LOW: case APIC_TIMER_INITIAL: case APIC_TIMER_CURRENT: case APIC_TIMER_DIVIDE:
    case APIC_SELF_IPI: return 1;
    }
    return (offset >= APIC_ISR && offset < APIC_ESR) || is_lvt(offset);
}

static int is_write_only(u32 offset) { return offset == APIC_EOI || offset == APIC_SELF_IPI; }

static int write_x2apic(struct lapic *l, u32 offset, u64 value) {
    u64 allowed = writable(l, offset);
    if (offset == APIC_ICR_LOW) allowed |= 0xffffffff00000000;
    if (offset == APIC_SELF_IPI) allowed = 0xff;
    if (value & ~allowed) return REFUSED;
    if (!allowed && offset != APIC_EOI && offset != APIC_ESR) return REFUSED;
    if (offset == APIC_ICR_LOW) *reg(l, APIC_ICR_HIGH) = value >> 32;
    if (offset == APIC_SELF_IPI) send(l, SHORTHAND_SELF | value, 0);
    else write_register(l, offset, value);
    return DONE;
}

static void enter_x2apic(struct lapic *l) {
    *reg(l, APIC_ID) = l->id;
    *reg(l, APIC_LDR) = (l->id >> 4) << 16 | 1u << (l->id & 0xf);
}

/* The state after a reset. INIT keeps the ID and where the APIC is (Intel SDM volume 3A, 12.4.7). */
static void begin(struct lapic *l) {
    for (u32 i = 0; i < APIC_END / 4; i++) l->page[i] = 0;
    *reg(l, APIC_ID) = l->id << 24;
    *reg(l, APIC_VERSION) = SIX_ENTRIES | (l->features & SUPPRESSES_EOI ? DIRECTED_EOI : 0);
    *reg(l, APIC_DFR) = ~0u;
    *reg(l, APIC_SVR) = 0xff;
    mask_all(l);
    if (!l->id) *reg(l, APIC_LVT_LINT0) = EXT_INT << MODE_SHIFT; /* as KVM has it, for who never sets the APIC up */
    l->errors = 0, l->deadline = 0;
    if (is_x2apic(l)) enter_x2apic(l);
}

FOR_PYTHON void lapic_init(struct lapic *l) {
    u32 id = value_of(l, APIC_ID);
    begin(l);
    *reg(l, APIC_ID) = id;
}

FOR_PYTHON void lapic_reset(struct lapic *l) {
    *l->base = BASE_AT_RESET | BASE_ENABLED | (l->id ? 0 : BASE_BSP);
    l->events = 0;
    begin(l);
}

/* Legal steps are off - xAPIC - x2APIC, forwards, and off from each (Intel SDM volume 3A, 12.12.5). What an APIC that is off
   knows may be lost (12.4.3); here it is not, as in KVM. */
static int set_base(struct lapic *l, u64 value) {
    u64 before = *l->base, modes = BASE_ENABLED | BASE_X2APIC;
    u64 reserved = -(1ull << PHYSICAL_BITS) | BASE_RESERVED | (l->features & HAS_X2APIC ? 0 : BASE_X2APIC);
    if (value & reserved || (value & modes) == BASE_X2APIC) return REFUSED;
    if ((before & modes) == modes && (value & modes) == BASE_ENABLED) return REFUSED;
    if (!(before & modes) && (value & modes) == modes) return REFUSED;
    *l->base = value;
    if (value & BASE_X2APIC && !(before & BASE_X2APIC)) enter_x2apic(l);
    return DONE;
}

static int has_deadline(const struct lapic *l, u32 index) { return index == MSR_TSC_DEADLINE && l->features & HAS_DEADLINE; }

int lapic_read_msr(struct lapic *l, u32 index, u64 *value) {
    u32 offset = (index - MSR_X2APIC) << 4;
    if (index == MSR_APIC_BASE) *value = *l->base;
    else if (has_deadline(l, index)) *value = l->deadline;
    else if (index < MSR_X2APIC || index >= MSR_X2APIC_END) return NOT_OF_APIC;
    else if (!is_x2apic(l) || !is_in_x2apic(offset) || is_write_only(offset)) return REFUSED;
    else *value = read_register(l, offset) | (offset == APIC_ICR_LOW ? (u64)value_of(l, APIC_ICR_HIGH) << 32 : 0);
    return DONE;
}

int lapic_write_msr(struct lapic *l, u32 index, u64 value) {
    u32 offset = (index - MSR_X2APIC) << 4;
    if (index == MSR_APIC_BASE) return set_base(l, value);
    if (has_deadline(l, index)) {
        if ((value_of(l, APIC_LVT_TIMER) & TIMER_MODE) != DEADLINE_MODE) return DONE;
        l->deadline = value;
        l->write_timer(index, value);
        return DONE;
    }
    if (index < MSR_X2APIC || index >= MSR_X2APIC_END) return NOT_OF_APIC;
    return is_x2apic(l) && is_in_x2apic(offset) ? write_x2apic(l, offset, value) : REFUSED;
}

FOR_PYTHON u64 lapic_size(void) { return sizeof(struct lapic); }
