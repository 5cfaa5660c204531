/* Programs of a flash unit that is in command mode (JEDEC JESD68.01; devices/flash/cfi.py).

   Firmware writes its variables byte by byte: a command, the byte, and looks at the status in between. Python arms this
   file after a program that went well; from then on programs are noted here, with their time, and reads are answered
   with the status, which stays "ready". Whatever else happens to the unit, or is told to Python, hands them over first.
   The array cannot be read before that: in command mode all accesses come here. */
#include "cpu.h"

enum { PROGRAM = 0x10, PROGRAM_ALTERNATE = 0x40, READY = 0x80, PAGE = 4096 };

void hand_over(struct cpu *c) {
    struct flash *f = &c->flash;
    u32 count = f->count, pending = f->pending;
    f->armed = f->pending = f->count = 0;
    if (count || pending) f->take(count, pending);
}

EXPORT void hooks_hand_over(struct cpu *c) { hand_over(c); }

static int is_ours(struct flash *f, u64 gpa, u32 size) {
    int is_whole = (gpa & (PAGE - 1)) + size <= PAGE && (size == 1 || size == 2 || size == 4);
    return f->armed && is_whole && gpa - f->gpa < f->size && size <= f->size - (gpa - f->gpa);
}

int flash_write(struct cpu *c, u64 gpa, u32 size, u64 value) {
    struct flash *f = &c->flash;
    if (!is_ours(f, gpa, size)) return 0;
    if (!f->pending) {
        if ((u8)value != PROGRAM && (u8)value != PROGRAM_ALTERNATE) return 0;
        f->pending = 1, f->pending_offset = gpa - f->gpa, f->pending_size = size, f->pending_value = value;
        return 1;
    }
    struct program *p = &f->log[f->count++];
    p->offset = gpa - f->gpa, p->size = size, p->value = value, p->ticks = __builtin_ia32_rdtsc();
    f->pending = 0;
    if (f->count == PROGRAMS) {
        hand_over(c);
        f->armed = 1;
    }
    return 1;
}

int flash_read(struct cpu *c, u64 gpa, u32 size, u64 *value) {
    if (!is_ours(&c->flash, gpa, size)) return 0;
    *value = size > 2 ? READY | READY << 16 : READY; /* the upper half of a wide bus would be a second chip */
    return 1;
}
