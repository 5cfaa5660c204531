/* The attacks of ``casemate prove`` (prove/attacks.py). */
#include "piece.h"
        .code64

        PIECE(mark)
        movb    $VALUE, %al
        outb    %al, $PORT

        PIECE(spin)
1:      jmp     1b

        PIECE(load_filler)
        movb    $0x33, %al

        PIECE(store_arm_store)
        movb    $0x77, (%rbx)
        outb    %al, $PORT
        movb    $0x77, 8(%rbx)

        PIECE(touch_table)
        movabsq $0x8000000000, %rax
        movb    (%rax), %al

        PIECE(store_for_ever)
1:      movb    $0x77, (%rbx)
        jmp     1b

        .code32

        PIECE(store_word)
        movl    $VALUE, GPA

        PIECE(flip_for_ever)
1:      outb    %al, $PORT
        jmp     1b

        .code16

        PIECE(second_processor)
        cli
        cs; lgdtl 0x100
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmpl   $8, $NEXT

        .code32

        PIECE(second_processor_flat)
        movw    $0x10, %ax
        movl    %eax, %ds
1:      movb    $0x77, GPA
        jmp     1b
