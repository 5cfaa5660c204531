/* From the reset vector to a 64-bit kernel (linux/entry.py; Linux Documentation/arch/x86/boot.rst). */
#include "piece.h"
        .code16

        PIECE(real_mode)
        cli
        cs; lgdtl GDT
        movl    $0x20, %eax     /* CR4.PAE */
        movl    %eax, %cr4
        movl    $TABLES, %eax
        movl    %eax, %cr3
        movl    $0xc0000080, %ecx
        rdmsr
        orl     $0x100, %eax    /* EFER.LME */
        wrmsr
        movl    $0x80000033, %eax /* PG, NE, ET, MP, PE */
        movl    %eax, %cr0
        ljmpl   $0x10, $NEXT

        /* Whoever is started as its launch said waits for good: an SNP guest's kernel creates its vCPUs itself. */
        PIECE(ap_hold)
hold:   movl    $0xc0010130, %ecx /* the GHCB MSR */
        movl    $6, %eax        /* AP reset hold */
        xorl    %edx, %edx
        wrmsr
        rep; vmmcall            /* VMGEXIT */
        jmp     hold

        PIECE(reset_vector)
        .byte   0xe9            /* jmp to the code, which is not in this piece */
        .word   DISTANCE

        /* To 32-bit code with flat segments and without paging. */
        PIECE(to_protected_mode)
        cli
        cs; lgdtl GDT
        movl    $0x11, %eax     /* ET, PE */
        movl    %eax, %cr0
        ljmpl   $0x8, $NEXT

        .code32

        PIECE(protected_mode)
        movl    $0x10, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    %eax, %fs
        movl    %eax, %gs
        xorl    %ebp, %ebp
        xorl    %edi, %edi
        xorl    %esi, %esi
        xorl    %edx, %edx
        movl    $INFORMATION, %ebx
        movl    $ENTRY, %ecx
        movl    $MAGIC, %eax
        jmp     *%ecx

        .code64

        PIECE(long_mode)
        movl    $0x18, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    %eax, %fs
        movl    %eax, %gs
        movl    $BOOT_PARAMS, %esp
        movl    $BOOT_PARAMS, %esi

        /* An SNP guest: validate the pages of the ranges listed at RANGES, by 2 MiB where the host gives them so. A page
           that was validated before is an attack. */
        PIECE(take_memory)
        movl    $RANGES, %ebx
next:   movq    (%rbx), %r8
        movq    8(%rbx), %r9
        addq    $16, %rbx
        testq   %r9, %r9
        jz      done
page:   cmpq    %r9, %r8
        jae     next
        testl   $0x1fffff, %r8d
        jnz     small
        leaq    0x200000(%r8), %rdx
        cmpq    %r9, %rdx
        ja      small
        movq    %r8, %rax
        xorl    %ecx, %ecx
        incl    %ecx
        movl    %ecx, %edx
        .byte   0xf2, 0x0f, 0x01, 0xff  /* pvalidate, which compilers of 2020 do not know */
        jc      refused
        cmpl    $6, %eax        /* the host has small pages here */
        je      small
        addq    $0x200000, %r8
        jmp     check
small:  movq    %r8, %rax
        xorl    %ecx, %ecx
        xorl    %edx, %edx
        incl    %edx
        .byte   0xf2, 0x0f, 0x01, 0xff
        jc      refused
        addq    $0x1000, %r8
check:  testl   %eax, %eax
        jz      page
refused:
        movl    $0xc0010130, %ecx /* the GHCB MSR */
        movl    $0x100, %eax    /* terminate */
        xorl    %edx, %edx
        wrmsr
        rep; vmmcall            /* VMGEXIT */
        hlt
done:

        PIECE(to_kernel)
        xorl    %ebp, %ebp
        xorl    %edi, %edi
        xorl    %ebx, %ebx
        movl    $ENTRY, %eax
        jmp     *%rax
