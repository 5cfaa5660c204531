/* CPUID of the host as the monitor sees it: an AMD processor with SEV.

   Monitors execute CPUID themselves to learn where the C-bit is. QEMU does it in one function, which it exports: that one
   is replaced. Other monitors see the real processor. */
#include "kvm.h"
#include <cpuid.h>
#include <string.h>
#include <sys/mman.h>

#define MAX_EXTENDED 0x80000000u
#define ENCRYPTION 0x8000001fu
enum { EBX_AUTH = 0x68747541, EDX_ENTI = 0x69746e65, ECX_CAMD = 0x444d4163 };

static u32 encryption[4];

static void host_cpuid(u32 leaf, u32 index, u32 *eax, u32 *ebx, u32 *ecx, u32 *edx) {
    u32 a, b, c, d;
    __cpuid_count(leaf, index, a, b, c, d);
    if (leaf == 0) b = EBX_AUTH, c = ECX_CAMD, d = EDX_ENTI;
    if (leaf == MAX_EXTENDED && a < ENCRYPTION) a = ENCRYPTION;
    if (leaf == ENCRYPTION) a = encryption[0], b = encryption[1], c = encryption[2], d = encryption[3];
    if (eax) *eax = a;
    if (ebx) *ebx = b;
    if (ecx) *ecx = c;
    if (edx) *edx = d;
}

/* `function` is the monitor's, or 0; nonzero if the monitor sees the leaf from now on. */
EXPORT int kvm_show_cpuid(u8 *function, const u32 *leaf) {
    u8 jump[] = {0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0}; /* mov $host_cpuid,%rax; jmp *%rax */
    void *target = (void *)host_cpuid;
    u64 start = (u64)function & -(u64)PAGE, size = ((u64)function + sizeof jump - start + PAGE - 1) & -(u64)PAGE;
    memcpy(encryption, leaf, sizeof encryption);
    if (!function || mprotect((void *)start, size, PROT_READ | PROT_WRITE | PROT_EXEC)) return 0;
    memcpy(jump + 2, &target, sizeof target);
    memcpy(function, jump, sizeof jump);
    mprotect((void *)start, size, PROT_READ | PROT_EXEC);
    return 1;
}
