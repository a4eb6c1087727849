/* What both passes over pairs of the laminar-flow model share; the formulas are in tessera/xpcs/kernel.py. */
#ifndef TESSERA_FLOW_H
#define TESSERA_FLOW_H

#include <math.h>
#include <stddef.h>

#include "robust.h"

enum {
    DECAYS = 3,                          /* vectors u over the times: slopes of the decay */
    PHASES = 4,                          /* vectors v: slopes of the phase, times four */
    FUNCTIONS = 1 + DECAYS + PHASES,     /* g, g (u_j - u_i), h (v_j - v_i) */
    SUMS = 2 * FUNCTIONS + FUNCTIONS * FUNCTIONS,
    ALL_SUMS = SUMS + EXTRA
};

/* Below it, in rad, 1 - x^2/6 + x^4/120 is sinc x to rounding, and differences of sines would lose digits. */
static const double COINCIDENT = 1e-3;

/* How far exponents may spread in a square and still be taken apart into factors. */
static const double SPREAD = 500.0;

struct flow_pass {
    const double *decay, *phase;         /* (pitch): both increase */
    const double *slopes;                /* (DECAYS + PHASES, pitch) */
    const double *sine, *cosine;         /* (n_phi, pitch): of across * phase */
    const double *across;                /* (n_phi) */
    const double *share;                 /* (pitch): times that a node stands for, or NULL */
    const unsigned char *flat;           /* (n_phi): whether all phases of an angle are far below one */
    const struct robust *robust;         /* NULL: squares, contrast and offset are not needed */
    ptrdiff_t n_phi, pitch;              /* pitch: PAD more than there are times */
    double smoothing;
};

struct block {
    ptrdiff_t first, rows;               /* rows of the block */
    ptrdiff_t left, width;               /* its columns; left == first: only pairs above the diagonal count */
    ptrdiff_t stride;                    /* from row to row of y and weight: width up to a multiple of PAD */
    const double *y, *weight;            /* (n_phi, rows, stride); padding is zero; weight may be NULL */
};

/* What all angles share in one row. */
struct row {
    double *fade, *inverse, *root, *delta;
    ptrdiff_t start, close;              /* first column that counts, first that is not coincident */
};

/* Fill what all angles share of a row: K^(1/4), 1/delta, and the smoothing of delta, to first order in its square.

   fading: K^(1/4) of the columns as seen from the first of the block, whose decay is `reference`; NULL: each by itself. */
INLINE void prepare(struct row *row, const struct flow_pass *pass, ptrdiff_t i, ptrdiff_t left, ptrdiff_t width,
                    double reference, const double *fading)
{
    const double *phase = pass->phase + left, *decay = pass->decay + left;
    const double here = pass->phase[i], factor = fading ? exp(0.25 * (pass->decay[i] - reference)) : 0.0;
    const ptrdiff_t padded = (width + PAD - 1) / PAD * PAD;

    row->start = i + 1 > left ? i + 1 - left : 0;
    for (ptrdiff_t j = 0; j < width; j++) {
        row->fade[j] = fading ? factor * fading[j] : exp(0.25 * (pass->decay[i] - decay[j]));
        row->delta[j] = phase[j] - here;
        row->inverse[j] = 1.0 / row->delta[j];
        row->root[j] = 0.5 * pass->smoothing * row->inverse[j] * row->inverse[j];
    }
    for (ptrdiff_t j = 0; j < row->start; j++)
        row->fade[j] = row->inverse[j] = row->root[j] = row->delta[j] = 0.0;
    for (ptrdiff_t j = width; j < padded; j++)
        row->fade[j] = row->inverse[j] = row->root[j] = row->delta[j] = 0.0;
    row->close = row->start;
    while (row->close < width && row->delta[row->close] < COINCIDENT)
        row->close++;
}

/* Make T = K^(1/4) sinc(c delta) and K^(1/4) (cos - sinc)/delta of one angle. */
INLINE void values(const struct row *row, const struct flow_pass *pass, ptrdiff_t angle, ptrdiff_t i, ptrdiff_t left,
                   ptrdiff_t width, double *sinc_out, double *slope_out)
{
    const double *sine = pass->sine + angle * pass->pitch, *cosine = pass->cosine + angle * pass->pitch;
    const double across = pass->across[angle];
    const vec cos_i = all(cosine[i]), sin_i = all(sine[i]);
    const vec cos_over = all(cosine[i] / across), sin_over = all(-sine[i] / across);

    for (ptrdiff_t j = row->start / LANES * LANES; j < width; j += LANES) {
        const vec s = load(sine + left + j), c = load(cosine + left + j);
        const vec inverse = load(row->inverse + j), fade = load(row->fade + j);
        vec sinc = (s * cos_over + c * sin_over) * inverse;
        const vec apart = c * cos_i + s * sin_i - sinc;
        sinc += apart * load(row->root + j);
        store(sinc_out + j, sinc * fade);
        store(slope_out + j, apart * inverse * fade);
    }
    const ptrdiff_t close = pass->flat[angle] ? width : row->close;
    for (ptrdiff_t j = row->start; j < close; j++) {
        const double delta = row->delta[j], square = across * across * delta * delta;
        const double smooth = square + across * across * pass->smoothing;
        sinc_out[j] = row->fade[j] * (1.0 - smooth / 6.0 * (1.0 - smooth / 20.0));
        slope_out[j] = row->fade[j] * across * across * delta * (square / 30.0 - 1.0 / 3.0);
    }
}

#endif
