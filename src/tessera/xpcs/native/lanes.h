/* Vectors of doubles as wide as the processor's registers; each source is compiled once for every LEVEL.

   LEVEL is a suffix of the names (v4, v3, v1 on x86-64, any elsewhere), LANES how many doubles a vector has. */
#ifndef TESSERA_LANES_H
#define TESSERA_LANES_H

#ifndef LANES
#define LANES 2
#endif
#ifndef LEVEL
#define LEVEL any
#endif

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(function) JOIN(function, LEVEL)

#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))

/* Rows of C2 that are worked on together, and what the rows of padded arrays are multiples of, in elements. */
enum { ROWS = 32, PAD = 8 };

typedef double vec __attribute__((vector_size(8 * LANES)));
typedef double unaligned_vec __attribute__((vector_size(8 * LANES), aligned(8), may_alias));

INLINE vec load(const double *from) { return *(const unaligned_vec *)from; }

INLINE void store(double *to, vec value) { *(unaligned_vec *)to = value; }

INLINE vec all(double value) { return value - (vec){0}; }

/* Sum the lanes, halves first: the order of additions is the same for every call. */
INLINE double total(vec v)
{
#if LANES == 8
    typedef double half __attribute__((vector_size(32)));
    half four = __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
#elif LANES == 4
    vec four = v;
#endif
#if LANES >= 4
    typedef double quarter __attribute__((vector_size(16)));
    quarter two = __builtin_shufflevector(four, four, 0, 1) + __builtin_shufflevector(four, four, 2, 3);
#else
    vec two = v;
#endif
    return two[0] + two[1];
}

#endif
