/* Sums over squares on the diagonal for the laminar-flow model. Their rows are short: pairs are summed one by one, with
   the differences u_j - u_i and v_j - v_i of each, which all angles share, instead of by rows and columns. */
#include <stdlib.h>

#include "flow.h"

/* A matrix of the square. */
typedef double matrix[ROWS][ROWS] __attribute__((aligned(64)));

struct square {
    matrix fade, inverse, root, delta;
    matrix du[DECAYS], dv[PHASES];
    matrix g, h;
    matrix w, wr;
    struct row rows[ROWS];
};

/* The first column of a row that is not left of the diagonal's vector. */
INLINE ptrdiff_t from(ptrdiff_t r) { return (r + 1) / LANES * LANES; }

static void share(struct square *square, const struct flow_pass *pass, const struct block *block)
{
    const ptrdiff_t first = block->first, rows = block->rows;
    const double *decay = pass->decay + first;
    const int factors = 0.25 * (decay[rows - 1] - decay[0]) < SPREAD;
    double fading[ROWS];

    for (ptrdiff_t j = 0; j < rows; j++)
        fading[j] = exp(0.25 * (decay[0] - decay[j]));
    for (ptrdiff_t r = 0; r < rows; r++) {
        square->rows[r] = (struct row){square->fade[r], square->inverse[r], square->root[r], square->delta[r], 0, 0};
        prepare(square->rows + r, pass, first + r, first, rows, decay[0], factors ? fading : NULL);
        for (ptrdiff_t j = (rows + PAD - 1) / PAD * PAD; j < ROWS; j++)
            square->fade[r][j] = square->inverse[r][j] = square->root[r][j] = square->delta[r][j] = 0.0;
        for (int k = 0; k < DECAYS + PHASES; k++) {
            const double *slope = pass->slopes + k * pass->pitch + first;
            double *to = k < DECAYS ? square->du[k][r] : square->dv[k - DECAYS][r];
            for (ptrdiff_t j = 0; j < ROWS; j++)
                to[j] = j < rows ? slope[j] - slope[r] : 0.0;
        }
    }
}

/* Make g and h of one angle. */
INLINE void fill(struct square *square, const struct flow_pass *pass, const struct block *block, ptrdiff_t angle)
{
    for (ptrdiff_t r = 0; r < block->rows; r++) {
        double *sinc = square->g[r], *slope = square->h[r];
        values(square->rows + r, pass, angle, block->first + r, block->first, block->rows, sinc, slope);
        for (ptrdiff_t j = from(r); j < block->rows; j += LANES) {
            const vec root = load(sinc + j), twice = root * root;
            store(sinc + j, twice * twice);
            store(slope + j, load(slope + j) * (twice * root));
        }
    }
}

/* Add the sums with g alone, those with h alone, and those with both. */
INLINE void sum_g(const struct square *square, ptrdiff_t rows, const double *y, const double *w, double *out)
{
    vec data[1 + DECAYS] = {{0}}, plain[1 + DECAYS] = {{0}}, gram[1 + DECAYS][1 + DECAYS] = {{{0}}};
    for (ptrdiff_t r = 0; r < rows; r++)
        for (ptrdiff_t j = from(r); j < rows; j += LANES) {
            const vec g = load(square->g[r] + j), gy = g * load(y + r * ROWS + j);
            const vec once = w ? g * load(w + r * ROWS + j) : g, twice = once * g;
            data[0] += gy, plain[0] += once, gram[0][0] += twice;
            for (int k = 0; k < DECAYS; k++) {
                const vec du = load(square->du[k][r] + j), step = twice * du;
                data[1 + k] += gy * du, plain[1 + k] += once * du, gram[0][1 + k] += step;
                for (int l = k; l < DECAYS; l++)
                    gram[1 + k][1 + l] += step * load(square->du[l][r] + j);
            }
        }
    for (int k = 0; k <= DECAYS; k++) {
        out[k] += total(data[k]);
        out[FUNCTIONS + k] += total(plain[k]);
        for (int l = k; l <= DECAYS; l++)
            out[(2 + k) * FUNCTIONS + l] += total(gram[k][l]);
    }
}

INLINE void sum_h(const struct square *square, ptrdiff_t rows, const double *y, const double *w, double *out)
{
    vec data[PHASES] = {{0}}, plain[PHASES] = {{0}}, with_g[PHASES] = {{0}}, gram[PHASES][PHASES] = {{{0}}};
    for (ptrdiff_t r = 0; r < rows; r++)
        for (ptrdiff_t j = from(r); j < rows; j += LANES) {
            const vec h = load(square->h[r] + j), g = load(square->g[r] + j), at = load(y + r * ROWS + j);
            const vec weight = w ? load(w + r * ROWS + j) : h;
            vec steps[PHASES];
            for (int k = 0; k < PHASES; k++) {
                steps[k] = h * load(square->dv[k][r] + j);
                const vec weighted = w ? steps[k] * weight : steps[k];
                data[k] += steps[k] * at, plain[k] += weighted, with_g[k] += weighted * g;
                for (int l = 0; l <= k; l++)
                    gram[l][k] += weighted * steps[l];
            }
        }
    for (int k = 0; k < PHASES; k++) {
        out[1 + DECAYS + k] += total(data[k]);
        out[FUNCTIONS + 1 + DECAYS + k] += total(plain[k]);
        out[2 * FUNCTIONS + 1 + DECAYS + k] += total(with_g[k]);
        for (int l = k; l < PHASES; l++)
            out[(2 + 1 + DECAYS + k) * FUNCTIONS + 1 + DECAYS + l] += total(gram[k][l]);
    }
}

INLINE void sum_both(const struct square *square, ptrdiff_t rows, const double *w, double *out)
{
    vec gram[DECAYS][PHASES] = {{{0}}};
    for (ptrdiff_t r = 0; r < rows; r++)
        for (ptrdiff_t j = from(r); j < rows; j += LANES) {
            const vec once = load(square->g[r] + j) * load(square->h[r] + j);
            const vec both = w ? once * load(w + r * ROWS + j) : once;
            vec dv[PHASES];
            for (int l = 0; l < PHASES; l++)
                dv[l] = load(square->dv[l][r] + j);
            for (int k = 0; k < DECAYS; k++) {
                const vec step = both * load(square->du[k][r] + j);
                for (int l = 0; l < PHASES; l++)
                    gram[k][l] += step * dv[l];
            }
        }
    for (int k = 0; k < DECAYS; k++)
        for (int l = 0; l < PHASES; l++)
            out[(2 + 1 + k) * FUNCTIONS + 1 + DECAYS + l] += total(gram[k][l]);
}

/* Fill w and wr, see robust.h. */
INLINE void weigh(struct square *square, const struct flow_pass *pass, const struct block *block, ptrdiff_t angle,
                  ptrdiff_t at, double *extra)
{
    double rho[ROWS];
    for (ptrdiff_t r = 0; r < block->rows; r++) {
        const ptrdiff_t row = at + r * ROWS;
        reweigh(pass->robust, angle, square->g[r], block->y + row, block->weight ? block->weight + row : NULL,
                square->rows[r].start, block->rows, ROWS, square->w[r], square->wr[r], rho, extra);
    }
}

/* Add the sums over a square to out, shape (n_phi, ALL_SUMS), as flow_rectangle does; rows of y are ROWS long.

   Returns 0, or 1 if there is no memory. */
EXPORT int NAME(flow_square)(const struct flow_pass *pass, const struct block *block, double *out)
{
    struct square *square = aligned_alloc(64, (sizeof(struct square) + 63) / 64 * 64);
    if (!square)
        return 1;
    share(square, pass, block);
    for (ptrdiff_t angle = 0; angle < pass->n_phi; angle++) {
        const ptrdiff_t at = angle * block->rows * ROWS;
        const double *y = block->y + at, *weight = block->weight ? block->weight + at : NULL;
        double *to = out + ALL_SUMS * angle;
        fill(square, pass, block, angle);
        if (pass->robust) {
            weigh(square, pass, block, angle, at, to + SUMS);
            y = square->wr[0], weight = square->w[0];
        }
        if (weight) {
            sum_g(square, block->rows, y, weight, to);
            sum_h(square, block->rows, y, weight, to);
            sum_both(square, block->rows, weight, to);
        } else {
            sum_g(square, block->rows, y, NULL, to);
            sum_h(square, block->rows, y, NULL, to);
            sum_both(square, block->rows, NULL, to);
        }
    }
    free(square);
    return 0;
}
