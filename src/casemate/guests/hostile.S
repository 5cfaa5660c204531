/* Tiny firmware that misbehaves (guests/hostile.py). */
#include "piece.h"
        .code32

        /* Copy what follows to RAM and run it there: flash that takes commands cannot be executed. */
        PIECE(from_ram)
        call    1f
1:      popl    %esi
        addl    $23, %esi       /* from 1 to 2 */
        movl    $RAM_COPY, %edi
        movl    $LENGTH, %ecx
        rep movsb
        movl    $RAM_COPY, %eax
        jmp     *%eax
2:

        PIECE(store_dword)
        movl    $VALUE, GPA

        /* Have fw_cfg do what the words at LIST say. */
        PIECE(start_dma)
        movw    $0x514, %dx
        xorl    %eax, %eax
        outl    %eax, %dx
        movw    $0x518, %dx
        movl    $LIST_SWAPPED, %eax
        outl    %eax, %dx

        PIECE(modify_next_instruction)
        call    1f
1:      popl    %esi
        movb    $6, 6(%esi)
        movb    $7, %al
        outb    %al, $0xf4
2:      jmp     2b

        PIECE(or_byte)
        orb     $1, GPA

        PIECE(lock_bts)
        lock btsl $0, GPA

        PIECE(exchange)
        xchgl   %eax, GPA

        PIECE(string)
        movl    $GPA, %edi
        movb    $0x41, %al
        movl    $64, %ecx
        rep stosb

        PIECE(x87)
        fninit
        fld1
        fstps   GPA

        PIECE(push)
        movl    $GPA, %esp
        pushl   %eax

        PIECE(ten_thousand)
        movl    $10000, %ecx
1:      movb    $0x41, GPA
        decl    %ecx
        jnz     1b

        PIECE(triple_fault)
        lidt    0x1000
        ud2

        PIECE(spin)
1:      jmp     1b

        PIECE(halt)
1:      cli
        hlt
        jmp     1b

        .code64

        PIECE(store_qword)
        movabsq $0x4141414141414141, %rax
        movl    $GPA, %edi
        movq    %rax, (%rdi)
