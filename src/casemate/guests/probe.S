/* A guest that shows what a host does with supervisor code, and with x87 (guests/probe.py). */
#include "piece.h"
        .code32

        PIECE(guest)
1:      movl    $LOOPS, %ecx
2:      decl    %ecx
        jnz     2b
        inb     $PORT, %al
        testb   %al, %al
        jz      1b
        fninit
        fld1
        fstps   0x1000
        outb    %al, $PORT
3:      jmp     3b
