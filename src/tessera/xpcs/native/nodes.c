/* Carries blocks of data to the nodes that stand for them: L y L', see tessera/xpcs/coarse.py. */
#include <stddef.h>

#include "lanes.h"

enum { NODES = 8 /* for ROWS times */ };

/* Carry one rectangle of ROWS rows: whole segments of ROWS columns to NODES each, what is left of a row as it is.

   spread: L, (NODES, ROWS). y: (n_phi, ROWS, stride), of width columns. out: (n_phi, NODES, out_stride), zero on entry. */
EXPORT void NAME(to_nodes)(const double *spread, ptrdiff_t n_phi, ptrdiff_t width, ptrdiff_t stride, const double *y,
                           ptrdiff_t out_stride, double *out)
{
    const ptrdiff_t segments = width / ROWS, rest = width - segments * ROWS;
    double down[ROWS][NODES], across[ROWS];
    for (int i = 0; i < ROWS; i++)
        for (int a = 0; a < NODES; a++)
            down[i][a] = spread[a * ROWS + i];
    for (ptrdiff_t angle = 0; angle < n_phi; angle++, y += ROWS * stride, out += NODES * out_stride)
        for (ptrdiff_t segment = 0; segment <= segments; segment++) {
            const ptrdiff_t columns = segment < segments ? ROWS : rest;
            for (int a = 0; a < NODES; a++) {
                double *to = out + a * out_stride + segment * NODES;
                for (int j = 0; j < ROWS; j += LANES) {
                    vec sum = {0};
                    for (int i = 0; i < ROWS && j < columns; i++)
                        sum += spread[a * ROWS + i] * load(y + i * stride + segment * ROWS + j);
                    store(across + j, sum);
                }
                if (segment == segments) {
                    for (ptrdiff_t j = 0; j < columns; j++)
                        to[j] = across[j];
                    continue;
                }
                for (int b = 0; b < NODES; b += LANES) {
                    vec sum = {0};
                    for (int j = 0; j < ROWS; j++)
                        sum += across[j] * load(down[j] + b);
                    store(to + b, sum);
                }
            }
        }
}
