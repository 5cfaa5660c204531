/* RDRAND and RDSEED give random numbers of the host's kernel. The engine's own come from a generator that each thread
   seeds by opening a file, which a process in a sandbox cannot do (host/sandbox.py). */
#include "cpu.h"

enum { GETRANDOM = 318 };

u64 h_helper_rdrand(void *env) {
    u64 value = 0;
    long got = system_call(GETRANDOM, (u64)&value, sizeof value, 0, 0);
    AT(u64, env, ENV_CC_SRC) = got == sizeof value; /* the carry flag, which is all of the flags here */
    return value;
}
