/* Instructions that store to memory, each in its own way (guests/stores.py). */
#include "piece.h"
        .code64

        PIECE(point_at)
        movl    $GPA, %ebx
        movabsq $0x7777777777777777, %rcx
        movl    $0x5a5a5a5a, %eax       /* what cmpxchg finds */
        movl    $GPA, %edi
        movl    $SOURCE, %esi
        movw    $PORT, %dx
        movl    $DEVICE, %ebp

        PIECE(mov_byte)
        movb    $0x77, (%rbx)

        PIECE(mov_qword)
        movq    %rcx, (%rbx)

        PIECE(or_byte)
        orb     $1, (%rbx)

        PIECE(xchg_dword)
        xchgl   %ecx, (%rbx)

        PIECE(lock_cmpxchg_dword)
        lock cmpxchgl %ecx, (%rbx)

        PIECE(lock_bts_dword)
        lock btsl $0, (%rbx)

        PIECE(movups)
        movups  %xmm0, (%rbx)

        PIECE(movnti_qword)
        movntiq %rcx, (%rbx)

        PIECE(push)
        leaq    8(%rbx), %rsp
        pushq   %rcx

        PIECE(rep_stosb)
        movl    $4, %ecx
        rep stosb

        PIECE(rep_movsb)
        movl    $4, %ecx
        rep movsb

        PIECE(insb)
        insb

        PIECE(rep_insb)
        movl    $4, %ecx
        rep insb

        PIECE(movsb_from_mmio)
        movq    %rbp, %rsi
        movsb

        PIECE(x87_fstp_dword)
        fninit
        fld1
        fstps   (%rbx)
