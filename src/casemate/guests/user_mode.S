/* From 64-bit supervisor mode into user mode (guests/user_mode.py). */
#include "piece.h"
        .code64

        PIECE(open_pages)
        movl    $TABLES, %edi
        movl    $0xc00, %ecx    /* entries of six pages */
1:      orl     $4, (%rdi)
        addl    $8, %edi
        decl    %ecx
        jnz     1b
        movq    %cr3, %rax
        movq    %rax, %cr3

        PIECE(push_descriptor)
        movabsq $DESCRIPTOR, %rax
        pushq   %rax

        PIECE(load_descriptors)
        movq    %rsp, %rax
        subq    $16, %rsp
        movw    $LIMIT, (%rsp)
        movq    %rax, 2(%rsp)
        lgdt    (%rsp)

        PIECE(leave)
        pushq   $0x23           /* SS */
        pushq   $USER_STACK
        pushq   $0x3002         /* RFLAGS: I/O privilege level 3, so that ports stay open */
        pushq   $0x2b           /* CS */
        leaq    3(%rip), %rax
        pushq   %rax
        iretq
