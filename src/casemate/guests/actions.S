/* What tiny guests do, in 32-bit code (guests/actions.py). */
#include "piece.h"
        .code32

        PIECE(halt)
        HALT

        PIECE(store)
        movb    $VALUE, GPA

        PIECE(tell)
        movb    $VALUE, %al
        outb    %al, $0xf4
        HALT

        PIECE(tell_memory)
        movb    GPA, %al
        outb    %al, $0xf4
        HALT

        PIECE(ask_for_reset)
        movw    $0xcf9, %dx
        movb    $6, %al
        outb    %al, %dx
        HALT

        PIECE(begin_print)
        movw    $0x3f8, %dx

        PIECE(print_byte)
        movb    $VALUE, %al
        outb    %al, %dx
