/* Sums over a strip of pairs of times for the static models; the formulas are in tessera/xpcs/kernel_static.py. */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>

#include "robust.h"

enum {
    DECAYS = 3,
    FUNCTIONS = 1 + DECAYS,              /* g, g (u_j - u_i) */
    SUMS = 2 * FUNCTIONS + FUNCTIONS * FUNCTIONS,
    ALL_SUMS = SUMS + EXTRA
};

/* How far exponents may spread in a square and still be taken apart into factors. */
static const double SPREAD = 300.0;

struct static_pass {
    const double *decay;                 /* (pitch): increases */
    const double *slopes;                /* (DECAYS, pitch) */
    const double *faded;                 /* (views, 1 + DECAYS, pitch): exp(seen - decay) times 1 and the slopes */
    const double *seen;                  /* (views) */
    const struct robust *robust;         /* NULL: squares, contrast and offset are not needed */
    ptrdiff_t n_t, pitch, n_phi;         /* pitch: PAD more than there are times */
};

struct strip {
    ptrdiff_t first, rows;
    ptrdiff_t width, stride;             /* columns right of the square, and from row to row of them */
    const double *square, *square_weight;/* (n_phi, rows, ROWS); zero on and below the diagonal, and in padding */
    const double *rest, *rest_weight;    /* (n_phi, rows, stride); weights may be NULL */
};

/* Sums over times j of f, f u, f^2, f^2 u and f^2 u u. */
struct after {
    double f, f_u[DECAYS], ff, ff_u[DECAYS], ff_uu[DECAYS][DECAYS];
};

INLINE double slope(const struct static_pass *pass, int k, ptrdiff_t i) { return pass->slopes[k * pass->pitch + i]; }

/* Fill g of the pairs above the diagonal of a square, zero elsewhere. */
static void square_values(const struct static_pass *pass, const struct strip *strip, double g[ROWS][ROWS])
{
    const double *decay = pass->decay + strip->first;
    const int apart = decay[strip->rows - 1] - decay[0] < SPREAD; /* a product of two exponentials each */
    double before[ROWS], after[ROWS];
    for (ptrdiff_t r = 0; r < strip->rows; r++)
        before[r] = exp(apart ? decay[r] - decay[0] : 0.0), after[r] = exp(decay[0] - decay[r]);
    for (ptrdiff_t r = 0; r < strip->rows; r++)
        for (ptrdiff_t s = 0; s < ROWS; s++)
            g[r][s] = s <= r || s >= strip->rows ? 0.0 : apart ? before[r] * after[s] : exp(decay[r] - decay[s]);
}

/* Add the square on the diagonal of one angle, or only its products with the data. */
INLINE void add_square(const struct static_pass *pass, const struct strip *strip, double g[ROWS][ROWS],
                       const double *y, const double *w, int with_sums, double *data_out, double *sums_out)
{
    const double *u = pass->slopes + strip->first;
    const ptrdiff_t width = (strip->rows + PAD - 1) / PAD * PAD;
    vec data[FUNCTIONS] = {{0}}, plain[FUNCTIONS] = {{0}}, gram[FUNCTIONS][FUNCTIONS] = {{{0}}};
    for (ptrdiff_t r = 0; r < strip->rows; r++)
        for (ptrdiff_t s = (r + 1) / LANES * LANES; s < width; s += LANES) {
            const vec at = load(&g[r][s]), aty = at * load(y + r * ROWS + s);
            const vec once = w ? at * load(w + r * ROWS + s) : at, twice = once * at;
            vec du[DECAYS];
            data[0] += aty, plain[0] += once, gram[0][0] += twice;
            for (int k = 0; k < DECAYS; k++) {
                du[k] = load(u + k * pass->pitch + s) - u[k * pass->pitch + r];
                data[1 + k] += aty * du[k];
            }
            if (!with_sums)
                continue;
            for (int k = 0; k < DECAYS; k++) {
                const vec step = twice * du[k];
                plain[1 + k] += once * du[k], gram[0][1 + k] += step;
                for (int l = k; l < DECAYS; l++)
                    gram[1 + k][1 + l] += step * du[l];
            }
        }
    for (int k = 0; k < FUNCTIONS; k++) {
        data_out[k] += total(data[k]);
        for (int l = k; with_sums && l < FUNCTIONS; l++)
            sums_out[FUNCTIONS + k * FUNCTIONS + l] += total(gram[k][l]);
        if (with_sums)
            sums_out[k] += total(plain[k]);
    }
}

/* Add one row's part of sums of w g^2 (u_j - u_i)(v_j - v_i) and of w g; e = exp(decay_i - seen). */
INLINE void add_row(const struct after *a, const double *u, double e, double *out)
{
    double *plain = out + FUNCTIONS, *gram = out + 2 * FUNCTIONS;
    const double ee = e * e;
    plain[0] += e * a->f;
    gram[0] += ee * a->ff;
    for (int k = 0; k < DECAYS; k++) {
        plain[1 + k] += e * (a->f_u[k] - u[k] * a->f);
        gram[1 + k] += ee * (a->ff_u[k] - u[k] * a->ff);
        for (int l = k; l < DECAYS; l++)
            gram[(1 + k) * FUNCTIONS + 1 + l] +=
                ee * (a->ff_uu[k][l] + u[k] * (u[l] * a->ff - a->ff_u[l]) - u[l] * a->ff_u[k]);
    }
}

/* Sum a row of the data times the four vectors over the columns. */
INLINE void moments_of(const double *y, const double *f, ptrdiff_t pitch, ptrdiff_t stride, double *out)
{
    vec sums[2][FUNCTIONS] = {{{0}}};
    ptrdiff_t j = 0;
    for (; j + 2 * LANES <= stride; j += 2 * LANES)
        for (int half = 0; half < 2; half++) {
            const vec at = load(y + j + half * LANES);
            for (int k = 0; k < FUNCTIONS; k++)
                sums[half][k] += at * load(f + k * pitch + j + half * LANES);
        }
    for (; j < stride; j += LANES)
        for (int k = 0; k < FUNCTIONS; k++)
            sums[0][k] += load(y + j) * load(f + k * pitch + j);
    for (int k = 0; k < FUNCTIONS; k++)
        out[k] = total(sums[0][k] + sums[1][k]);
}

/* Sum a row of weights times all that `after` holds over the columns. */
INLINE void weighted(const double *w, const double *f, const double *u, ptrdiff_t pitch, ptrdiff_t width,
                     struct after *out)
{
    vec s = {0}, s_u[DECAYS] = {{0}}, ss = {0}, ss_u[DECAYS] = {{0}}, ss_uu[DECAYS][DECAYS] = {{{0}}};
    for (ptrdiff_t j = 0; j < width; j += LANES) {
        const vec fade = load(f + j), once = load(w + j) * fade, twice = once * fade;
        s += once;
        ss += twice;
        for (int k = 0; k < DECAYS; k++) {
            const vec at = load(u + k * pitch + j), both = twice * at;
            s_u[k] += once * at;
            ss_u[k] += both;
            for (int l = k; l < DECAYS; l++)
                ss_uu[k][l] += both * load(u + l * pitch + j);
        }
    }
    out->f = total(s), out->ff = total(ss);
    for (int k = 0; k < DECAYS; k++) {
        out->f_u[k] = total(s_u[k]), out->ff_u[k] = total(ss_u[k]);
        for (int l = k; l < DECAYS; l++)
            out->ff_uu[k][l] = total(ss_uu[k][l]);
    }
}

/* Sum over all times from a strip's end on what its pairs need where no data and no weights are involved.

   after: one for each strip, as seen from the time that the strip is seen from; view: which view a strip has. */
EXPORT void NAME(static_after)(const struct static_pass *pass, const ptrdiff_t *view, ptrdiff_t n_strips,
                               struct after *after)
{
    struct after sum = {0};
    ptrdiff_t end = pass->n_t;
    for (ptrdiff_t strip = n_strips - 1; strip >= 0; strip--) {
        const double *f = pass->faded + view[strip] * FUNCTIONS * pass->pitch;
        const ptrdiff_t start = (strip + 1) * ROWS;
        if (strip + 1 < n_strips && view[strip] != view[strip + 1]) {
            const double once = exp(pass->seen[view[strip]] - pass->seen[view[strip + 1]]), twice = once * once;
            sum.f *= once, sum.ff *= twice;
            for (int k = 0; k < DECAYS; k++) {
                sum.f_u[k] *= once, sum.ff_u[k] *= twice;
                for (int l = k; l < DECAYS; l++)
                    sum.ff_uu[k][l] *= twice;
            }
        }
        for (ptrdiff_t j = start; j < end; j++) {
            const double once = f[j], twice = once * once;
            sum.f += once, sum.ff += twice;
            for (int k = 0; k < DECAYS; k++) {
                const double u = slope(pass, k, j);
                sum.f_u[k] += once * u, sum.ff_u[k] += twice * u;
                for (int l = k; l < DECAYS; l++)
                    sum.ff_uu[k][l] += twice * u * slope(pass, l, j);
            }
        }
        end = start < end ? start : end;
        after[strip] = sum;
    }
}

/* Add the square on the diagonal. Without weights, sums that involve no data are equal for all angles: shared. */
static void add_squares(const struct static_pass *pass, const struct strip *strip, double *shared, double *out)
{
    double g[ROWS][ROWS], w[ROWS][ROWS], wr[ROWS][ROWS], rho[ROWS];
    square_values(pass, strip, g);
    for (ptrdiff_t angle = 0; angle < pass->n_phi; angle++) {
        const ptrdiff_t at = angle * strip->rows * ROWS;
        const double *y = strip->square + at, *weight = strip->square_weight ? strip->square_weight + at : NULL;
        double *to = out + ALL_SUMS * angle;
        if (pass->robust) {
            for (ptrdiff_t r = 0; r < strip->rows; r++)
                reweigh(pass->robust, angle, g[r], y + r * ROWS, weight ? weight + r * ROWS : NULL, r + 1, strip->rows,
                        ROWS, w[r], wr[r], rho, to + SUMS);
            y = wr[0], weight = w[0];
        }
        add_square(pass, strip, g, y, weight, weight || !angle, to, (weight ? to : shared) + FUNCTIONS);
    }
}

/* Add what is right of the square; rows: room for four rows. */
static void add_rest(const struct static_pass *pass, const struct strip *strip, ptrdiff_t view,
                     const struct after *after, double *rows, double *shared, double *out)
{
    const ptrdiff_t left = strip->first + strip->rows, stride = strip->stride;
    const double *f = pass->faded + view * FUNCTIONS * pass->pitch + left, *u = pass->slopes + left;
    double *g = rows, *w = rows + stride, *wr = rows + 2 * stride, *rho = rows + 3 * stride;
    for (ptrdiff_t r = 0; r < strip->rows; r++) {
        const ptrdiff_t i = strip->first + r;
        const double e = exp(pass->decay[i] - pass->seen[view]);
        const double u_i[DECAYS] = {slope(pass, 0, i), slope(pass, 1, i), slope(pass, 2, i)};
        for (ptrdiff_t j = 0; pass->robust && j < strip->width; j++)
            g[j] = e * f[j];
        for (ptrdiff_t angle = 0; angle < pass->n_phi; angle++) {
            const ptrdiff_t at = (angle * strip->rows + r) * stride;
            const double *y = strip->rest + at, *weight = strip->rest_weight ? strip->rest_weight + at : NULL;
            double m[FUNCTIONS], *to = out + ALL_SUMS * angle;
            if (pass->robust) {
                reweigh(pass->robust, angle, g, y, weight, 0, strip->width, stride, w, wr, rho, to + SUMS);
                y = wr, weight = w;
            }
            moments_of(y, f, pass->pitch, stride, m);
            to[0] += e * m[0];
            for (int k = 0; k < DECAYS; k++)
                to[1 + k] += e * (m[1 + k] - u_i[k] * m[0]);
            if (weight) {
                struct after own;
                weighted(weight, f, u, pass->pitch, stride, &own);
                add_row(&own, u_i, e, to);
            }
        }
        if (!strip->rest_weight && !pass->robust)
            add_row(after, u_i, e, shared);
    }
}

/* Add the sums over a strip to out, shape (n_phi, ALL_SUMS): products with the data (of a robust pass: with w1 r), sums,
   upper half of the Gram matrix, and those of robust.h. Returns 0, or 1 if there is no memory. */
EXPORT int NAME(static_sums)(const struct static_pass *pass, const struct strip *strip, ptrdiff_t view,
                             const struct after *after, double *out)
{
    double shared[SUMS] = {0}, *rows = NULL;
    if (pass->robust && !(rows = malloc(sizeof(double) * 4 * (size_t)(strip->stride + PAD))))
        return 1;
    add_squares(pass, strip, shared, out);
    if (strip->width)
        add_rest(pass, strip, view, after, rows, shared, out);
    for (ptrdiff_t angle = 0; angle < pass->n_phi; angle++)
        for (int k = FUNCTIONS; k < SUMS; k++)
            out[ALL_SUMS * angle + k] += shared[k];
    free(rows);
    return 0;
}
