/* From the reset vector into 32-bit or 64-bit mode (guests/entry.py; Intel SDM volume 3, 9.8 and 9.9). */
#include "piece.h"
        .code16

        PIECE(to_protected_mode)
        cli
        cs; lgdtl GDT
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmpl   $8, $NEXT

        PIECE(reset_vector)
        .byte   0xe9            /* jmp to the start of the image, which is not in this piece */
        .word   DISTANCE

        .code32

        PIECE(flat_segments)
        movw    $0x10, %ax
        movl    %eax, %ds
        movl    %eax, %ss
        movl    %eax, %es
        movl    $STACK_TOP, %esp
        lidt    IDT

        PIECE(map_four_gib)
        movl    $TABLES, %edi
        xorl    %eax, %eax
        movl    $0x1800, %ecx   /* six pages of words */
        rep stosl
        movl    $TABLES + 0x1003, TABLES
        movl    $TABLES + 0x2003, TABLES + 0x1000
        movl    $TABLES + 0x3003, TABLES + 0x1008
        movl    $TABLES + 0x4003, TABLES + 0x1010
        movl    $TABLES + 0x5003, TABLES + 0x1018
        movl    $TABLES + 0x2000, %edi
        movl    $0x83, %eax     /* present, writable, large */
1:      movl    %eax, (%edi)
        addl    $8, %edi
        addl    $0x200000, %eax
        jnc     1b
        movl    $TABLES, %eax
        movl    %eax, %cr3

        PIECE(to_long_mode)
        movl    %cr4, %eax
        orl     $0x620, %eax    /* PAE, OSFXSR, OSXMMEXCPT */
        movl    %eax, %cr4
        movl    $0xc0000080, %ecx
        rdmsr
        orl     $0x100, %eax    /* EFER.LME */
        wrmsr
        movl    %cr0, %eax
        orl     $0x80000000, %eax
        movl    %eax, %cr0
        ljmpl   $0x18, $NEXT
