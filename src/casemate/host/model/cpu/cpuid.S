/* Asks the engine itself (host/model/cpu/cpuid.py). */
#include "piece.h"
        .code64

        PIECE(ask)
        cpuid
