/* A #VC handler for tiny 32-bit guests: OUT of AL becomes a request by GHCB, all else halts (guests/vc_handler.py). */
#include "piece.h"
        .code32

        /* Behind PUSHA, from EBP. */
        .set    saved_eax, 28
        .set    saved_edx, 20
        .set    error_code, 32
        .set    saved_eip, 36

        PIECE(handler)
        pushal
        movl    %esp, %ebp
        cmpl    $0x7b, error_code(%ebp)
        jne     halt
        movl    saved_eip(%ebp), %esi
        movzbl  (%esi), %eax
        cmpb    $0xe6, %al
        je      immediate
        cmpb    $0xee, %al
        je      by_dx
halt:   hlt
        jmp     halt
immediate:
        movzbl  1(%esi), %ebx
        movl    $2, %ecx
        jmp     request
by_dx:  movzwl  saved_edx(%ebp), %ebx
        movl    $1, %ecx
request:
        addl    %ecx, saved_eip(%ebp)
        shll    $16, %ebx
        orl     $0x10, %ebx     /* one byte, outwards */

        movl    $GHCB, %edi
        movl    saved_eax(%ebp), %eax
        movl    %eax, 0x1f8(%edi)
        movl    $0x7b, 0x390(%edi)      /* SW_EXIT_CODE: IOIO */
        movl    %ebx, 0x398(%edi)       /* SW_EXIT_INFO_1 */
        movl    $0, 0x3a0(%edi)         /* SW_EXIT_INFO_2 */
        movl    $0, 0x3f0(%edi)         /* which fields are valid: RAX and these three */
        movl    $0x80000000, 0x3f4(%edi)
        movl    $0, 0x3f8(%edi)
        movl    $0x1c0000, 0x3fc(%edi)
        movl    $0xc0010130, %ecx       /* the GHCB MSR */
        movl    %edi, %eax
        xorl    %edx, %edx
        wrmsr
        rep; vmmcall                    /* VMGEXIT */
        popal
        addl    $4, %esp
        iretl
