/* Pieces of guest code. Each has a section of its own, which hatch_build.py makes data of; undefined symbols in capitals
   are its parameters (native/code.py). Branches within a piece go to local labels. */
#define PIECE(name) .section .code.name, "ax", @progbits

/* Whoever comes here stays here. */
#define HALT cli; 9: hlt; jmp 9b
