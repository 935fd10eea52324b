// A program whose instructions are known: TIMES rounds of a loop, and nothing else but what begins and ends it.
.arch armv8.6-a+i8mm+dotprod+sve
.global _start
_start:
    ldr w0, =TIMES              // load, of a literal
    adr x1, numbers
round:
    sdot v0.4s, v1.16b, v2.16b
    sdot v0.4s, v1.16b, v2.4b[1]
    smmla v3.4s, v1.16b, v2.16b
    udot v4.4s, v1.16b, v2.16b  // another dot product
    fmla v5.4s, v1.4s, v2.4s
    fmla v5.4s, v1.4s, v2.s[2]
    fmul v6.4s, v1.4s, v2.4s    // none of the classes
    ldr q1, [x1]
    ldp q7, q8, [x1]
    ld1 {v9.4s}, [x1]
    ldr x2, [x1, #8]
    ldrsb w3, [x1]
    ldp x4, x5, [x1]
    str x2, [x1]                // not a load
    stp q7, q8, [x1]
    prfm pldl1keep, [x1]
    subs w0, w0, #1
    b.ne round
    mov x0, #0
    mov x8, #93                 // exit
    svc #0
.ltorg
.bss
.balign 16
numbers: .skip 64
