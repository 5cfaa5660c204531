/* System calls of a first program for Linux (testing/linux_init.py). */
#include "piece.h"
        .code64

        PIECE(first_argument)
        movl    $VALUE, %edi

        PIECE(second_argument)
        movl    $VALUE, %esi

        PIECE(third_argument)
        movl    $VALUE, %edx

        PIECE(system_call)
        movl    $NUMBER, %eax
        syscall

        PIECE(spin)
1:      jmp     1b
