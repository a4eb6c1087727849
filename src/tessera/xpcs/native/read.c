/* Reads blocks of the mean of both halves of C2 from memory, and sums blocks. */
#include <stddef.h>

#include "lanes.h"

#ifndef SOURCES
#define SOURCES 0u
#endif

enum { ACROSS = 64 /* columns that are transposed at a time: they stay in the first-level cache */ };

typedef float unaligned_floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE vec load_float(const float *from) { return __builtin_convertvector(*(const unaligned_floats *)from, vec); }

INLINE vec load_double(const double *from) { return load(from); }

/* The function that reads one type: mean_of_float, mean_of_double. */
#define MEAN_OF(TYPE)                                                                                                  \
    static double mean_of_##TYPE(const TYPE *c2, ptrdiff_t pitch, ptrdiff_t first, ptrdiff_t rows, ptrdiff_t left,     \
                                 ptrdiff_t width, ptrdiff_t stride, double *y)                                         \
    {                                                                                                                  \
        double mirrored[ROWS][ACROSS + PAD], unlike = 0.0; /* padding: rows lie in different sets of the cache */      \
        for (ptrdiff_t from = 0; from < width; from += ACROSS) {                                                       \
            const ptrdiff_t columns = width - from < ACROSS ? width - from : ACROSS;                                   \
            for (ptrdiff_t j = 0; j < columns; j++)                                                                    \
                for (ptrdiff_t i = 0; i < rows; i++)                                                                   \
                    mirrored[i][j] = (double)c2[(left + from + j) * pitch + first + i];                                \
            vec squares = {0};                                                                                         \
            for (ptrdiff_t i = 0; i < rows; i++) {                                                                     \
                const TYPE *above = c2 + (first + i) * pitch + left + from;                                            \
                double *to = y + i * stride + from;                                                                    \
                ptrdiff_t j = left == first && i + 1 > from ? i + 1 - from : 0;                                        \
                for (; j + LANES <= columns; j += LANES) {                                                             \
                    const vec a = load_##TYPE(above + j) - 1.0, b = load(mirrored[i] + j) - 1.0, half = 0.5 * (a - b); \
                    store(to + j, 0.5 * (a + b));                                                                      \
                    squares += half * half;                                                                            \
                }                                                                                                      \
                for (; j < columns; j++) {                                                                             \
                    const double a = (double)above[j] - 1.0, b = mirrored[i][j] - 1.0, half = 0.5 * (a - b);           \
                    to[j] = 0.5 * (a + b);                                                                             \
                    unlike += half * half;                                                                             \
                }                                                                                                      \
            }                                                                                                          \
            unlike += total(squares);                                                                                  \
        }                                                                                                              \
        return unlike;                                                                                                 \
    }

MEAN_OF(float)
MEAN_OF(double)

/* Write the mean less one of C2[first + i, left + j] and C2[left + j, first + i] of all angles into y, (n_phi, rows,
   stride), and the sum of the squares of half the difference of both into unlike, (n_phi).

   c2: float32 if single, else float64; pitch elements from row to row, turn from angle to angle. On the diagonal (left ==
   first) only what lies above it is written. Padding is not touched. */
EXPORT void NAME(read_mean)(const void *c2, int single, ptrdiff_t n_phi, ptrdiff_t turn, ptrdiff_t pitch,
                            ptrdiff_t first, ptrdiff_t rows, ptrdiff_t left, ptrdiff_t width, ptrdiff_t stride,
                            double *y, double *unlike)
{
    for (ptrdiff_t angle = 0; angle < n_phi; angle++) {
        double *to = y + angle * rows * stride;
        unlike[angle] = single
            ? mean_of_float((const float *)c2 + angle * turn, pitch, first, rows, left, width, stride, to)
            : mean_of_double((const double *)c2 + angle * turn, pitch, first, rows, left, width, stride, to);
    }
}

/* Put the sums of y and of its squares into out, (n_phi, 2); size numbers an angle, a multiple of PAD. */
EXPORT void NAME(sum_squares)(const double *y, ptrdiff_t n_phi, ptrdiff_t size, double *out)
{
    for (ptrdiff_t angle = 0; angle < n_phi; angle++, y += size) {
        vec sums = {0}, squares = {0};
        for (ptrdiff_t j = 0; j < size; j += LANES) {
            const vec at = load(y + j);
            sums += at;
            squares += at * at;
        }
        out[2 * angle] = total(sums);
        out[2 * angle + 1] = total(squares);
    }
}

/* Return from which sources the library was built. */
EXPORT unsigned NAME(sources)(void) { return SOURCES; }
