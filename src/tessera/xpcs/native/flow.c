/* Sums over rectangles of pairs of times for the laminar-flow model. */
#include <stdlib.h>
#include <string.h>

#include "flow.h"

enum {
    COLUMNS = 512,                       /* worked on at a time: vectors and buffers stay in the caches */
    APART = COLUMNS + 3 * PAD,           /* between buffers: equal places in them are not equal modulo 4096 bytes */
    BUFFERS = 11
};

/* Sums over the columns of a row of g^2, gh, h^2 and, with and without data, g and h: plain, and times u and v. */
struct moments {
    double gg, gg_u[DECAYS], gh, gh_u[DECAYS], gh_v[PHASES], hh, hh_v[PHASES];
    double g, g_u[DECAYS], h, h_v[PHASES];
    double gy, gy_u[DECAYS], hy, hy_v[PHASES];
};

enum weighting { NONE, SHARES, WEIGHTS, ROBUST };

/* Turn T and its slope into g and h; sum g, gy and g^2 over the columns of a row, and add g^2 to sums over the rows. */
INLINE void contract_g(double *sinc, double *slope, const double *u, ptrdiff_t pitch, enum weighting how,
                       const double *y, const double *weight, ptrdiff_t width, vec share, double *column_gg,
                       struct moments *out)
{
    vec g0 = {0}, g1 = {0}, g2 = {0}, g3 = {0}, y0 = {0}, y1 = {0}, y2 = {0}, y3 = {0};
    vec q0 = {0}, q1 = {0}, q2 = {0}, q3 = {0};
    for (ptrdiff_t j = 0; j < width; j += LANES) {
        const vec root = load(sinc + j), square = root * root, g = square * square;
        store(slope + j, load(slope + j) * (square * root));
        store(sinc + j, g);
        const vec w = how == NONE ? g : g * load(weight + j);
        const vec gg = w * g, gy = g * load(y + j);
        const vec u1 = load(u + j), u2 = load(u + pitch + j), u3 = load(u + 2 * pitch + j);
        g0 += w, g1 += w * u1, g2 += w * u2, g3 += w * u3;
        y0 += gy, y1 += gy * u1, y2 += gy * u2, y3 += gy * u3;
        q0 += gg, q1 += gg * u1, q2 += gg * u2, q3 += gg * u3;
        store(column_gg + j, load(column_gg + j) + share * gg);
    }
    out->g = total(g0), out->g_u[0] = total(g1), out->g_u[1] = total(g2), out->g_u[2] = total(g3);
    out->gy = total(y0), out->gy_u[0] = total(y1), out->gy_u[1] = total(y2), out->gy_u[2] = total(y3);
    out->gg = total(q0), out->gg_u[0] = total(q1), out->gg_u[1] = total(q2), out->gg_u[2] = total(q3);
}

/* The same of h, hy, h^2 and gh; the data that come next are fetched meanwhile. */
INLINE void contract_h(const double *g_of, const double *h_of, const double *u, const double *v, ptrdiff_t pitch,
                       enum weighting how, const double *y, const double *next_y, const double *weight,
                       ptrdiff_t width, vec share, double *column_gh, double *column_hh, struct moments *out)
{
    vec h0 = {0}, h1 = {0}, h2 = {0}, h3 = {0}, h4 = {0}, y0 = {0}, y1 = {0}, y2 = {0}, y3 = {0}, y4 = {0};
    vec q0 = {0}, q1 = {0}, q2 = {0}, q3 = {0}, q4 = {0};
    vec m0 = {0}, m1 = {0}, m2 = {0}, m3 = {0}, m4 = {0}, m5 = {0}, m6 = {0}, m7 = {0};
    for (ptrdiff_t j = 0; j < width; j += LANES) {
        const vec g = load(g_of + j), h = load(h_of + j);
        __builtin_prefetch(next_y + j);
        const vec w = how == NONE ? h : h * load(weight + j);
        const vec hy = h * load(y + j), hh = w * h, gh = w * g;
        const vec v1 = load(v + j), v2 = load(v + pitch + j), v3 = load(v + 2 * pitch + j), v4 = load(v + 3 * pitch + j);
        h0 += w, h1 += w * v1, h2 += w * v2, h3 += w * v3, h4 += w * v4;
        y0 += hy, y1 += hy * v1, y2 += hy * v2, y3 += hy * v3, y4 += hy * v4;
        q0 += hh, q1 += hh * v1, q2 += hh * v2, q3 += hh * v3, q4 += hh * v4;
        m0 += gh, m4 += gh * v1, m5 += gh * v2, m6 += gh * v3, m7 += gh * v4;
        m1 += gh * load(u + j), m2 += gh * load(u + pitch + j), m3 += gh * load(u + 2 * pitch + j);
        store(column_gh + j, load(column_gh + j) + share * gh);
        store(column_hh + j, load(column_hh + j) + share * hh);
    }
    out->h = total(h0), out->h_v[0] = total(h1), out->h_v[1] = total(h2), out->h_v[2] = total(h3);
    out->h_v[3] = total(h4);
    out->hy = total(y0), out->hy_v[0] = total(y1), out->hy_v[1] = total(y2), out->hy_v[2] = total(y3);
    out->hy_v[3] = total(y4);
    out->hh = total(q0), out->hh_v[0] = total(q1), out->hh_v[1] = total(q2), out->hh_v[2] = total(q3);
    out->hh_v[3] = total(q4);
    out->gh = total(m0), out->gh_u[0] = total(m1), out->gh_u[1] = total(m2), out->gh_u[2] = total(m3);
    out->gh_v[0] = total(m4), out->gh_v[1] = total(m5), out->gh_v[2] = total(m6), out->gh_v[3] = total(m7);
}

/* Add a row: sums of M (u_j - u_i) are whole, of M (u_j - u_i)(v_j - v_i) all but M u_j v_j is here. */
INLINE void add_row(const struct moments *m, const double *u, const double *v, double share, double *out)
{
    double *data = out, *plain = out + FUNCTIONS, *gram = out + 2 * FUNCTIONS;
    double u_i[DECAYS], v_i[PHASES];
    data[0] += m->gy;
    plain[0] += share * m->g;
    gram[0] += share * m->gg;
    for (int k = 0; k < DECAYS; k++) {
        u_i[k] = share * u[k];
        data[1 + k] += m->gy_u[k] - u[k] * m->gy;
        plain[1 + k] += share * m->g_u[k] - u_i[k] * m->g;
        gram[1 + k] += share * m->gg_u[k] - u_i[k] * m->gg;
    }
    for (int k = 0; k < PHASES; k++) {
        v_i[k] = share * v[k];
        data[1 + DECAYS + k] += m->hy_v[k] - v[k] * m->hy;
        plain[1 + DECAYS + k] += share * m->h_v[k] - v_i[k] * m->h;
        gram[1 + DECAYS + k] += share * m->gh_v[k] - v_i[k] * m->gh;
    }
    for (int k = 0; k < DECAYS; k++) {
        double *line = gram + (1 + k) * FUNCTIONS;
        for (int l = k; l < DECAYS; l++)
            line[1 + l] += u_i[k] * (u[l] * m->gg - m->gg_u[l]) - u_i[l] * m->gg_u[k];
        for (int l = 0; l < PHASES; l++)
            line[1 + DECAYS + l] += u_i[k] * (v[l] * m->gh - m->gh_v[l]) - v_i[l] * m->gh_u[k];
    }
    for (int k = 0; k < PHASES; k++) {
        double *line = gram + (1 + DECAYS + k) * FUNCTIONS + 1 + DECAYS;
        for (int l = k; l < PHASES; l++)
            line[l] += v_i[k] * (v[l] * m->hh - m->hh_v[l]) - v_i[l] * m->hh_v[k];
    }
}

/* Add the sums of M u_j v_j, given those of M over the rows. */
static void add_columns(const struct flow_pass *pass, const double *columns, ptrdiff_t left, ptrdiff_t width,
                        double *out)
{
    const ptrdiff_t pitch = pass->pitch;
    const double *u = pass->slopes + left, *v = u + DECAYS * pitch;
    vec decays[DECAYS][DECAYS] = {{{0}}}, mixed[DECAYS][PHASES] = {{{0}}}, phases[PHASES][PHASES] = {{{0}}};
    for (ptrdiff_t j = 0; j < width; j += LANES) {
        const vec gg = load(columns + j), gh = load(columns + APART + j), hh = load(columns + 2 * APART + j);
        vec at_u[DECAYS], at_v[PHASES];
        for (int k = 0; k < DECAYS; k++)
            at_u[k] = load(u + k * pitch + j);
        for (int k = 0; k < PHASES; k++)
            at_v[k] = load(v + k * pitch + j);
        for (int k = 0; k < DECAYS; k++) {
            const vec of_gg = gg * at_u[k], of_gh = gh * at_u[k];
            for (int l = k; l < DECAYS; l++)
                decays[k][l] += of_gg * at_u[l];
            for (int l = 0; l < PHASES; l++)
                mixed[k][l] += of_gh * at_v[l];
        }
        for (int k = 0; k < PHASES; k++) {
            const vec of_hh = hh * at_v[k];
            for (int l = k; l < PHASES; l++)
                phases[k][l] += of_hh * at_v[l];
        }
    }
    double *gram = out + 2 * FUNCTIONS;
    for (int k = 0; k < DECAYS; k++) {
        double *line = gram + (1 + k) * FUNCTIONS + 1;
        for (int l = k; l < DECAYS; l++)
            line[l] += total(decays[k][l]);
        for (int l = 0; l < PHASES; l++)
            line[DECAYS + l] += total(mixed[k][l]);
    }
    for (int k = 0; k < PHASES; k++)
        for (int l = k; l < PHASES; l++)
            gram[(1 + DECAYS + k) * FUNCTIONS + 1 + DECAYS + l] += total(phases[k][l]);
}

INLINE void sweep(const struct flow_pass *pass, const struct block *block, enum weighting how, double *buffers,
                  double *out)
{
    struct row row = {buffers, buffers + APART, buffers + 2 * APART, buffers + 3 * APART, 0, 0};
    double *sinc = buffers + 4 * APART, *slope = buffers + 5 * APART, *fading = buffers + 6 * APART;
    double *g = buffers + 7 * APART, *w = buffers + 8 * APART, *wr = buffers + 9 * APART, *rho = buffers + 10 * APART;
    double *columns = buffers + BUFFERS * APART;
    const double reference = pass->decay[block->left];

    for (ptrdiff_t from = 0; from < block->width; from += COLUMNS) {
        const ptrdiff_t left = block->left + from;
        const ptrdiff_t width = block->width - from < COLUMNS ? block->width - from : COLUMNS;
        const double *slopes = pass->slopes + left;
        memset(columns, 0, sizeof(double) * 3 * APART * pass->n_phi);
        for (ptrdiff_t j = 0; j < width; j++)
            fading[j] = exp(0.25 * (reference - pass->decay[left + j]));
        for (ptrdiff_t r = 0; r < block->rows; r++) {
            const ptrdiff_t i = block->first + r;
            const double share = how == SHARES ? pass->share[i] : 1.0;
            double u[DECAYS], v[PHASES];
            for (int k = 0; k < DECAYS; k++)
                u[k] = pass->slopes[k * pass->pitch + i];
            for (int k = 0; k < PHASES; k++)
                v[k] = pass->slopes[(DECAYS + k) * pass->pitch + i];
            prepare(&row, pass, i, left, width, reference, fading);
            for (ptrdiff_t angle = 0; angle < pass->n_phi; angle++) {
                const ptrdiff_t at = (angle * block->rows + r) * block->stride + from;
                const ptrdiff_t next = angle + 1 < pass->n_phi ? at + block->rows * block->stride
                                                               : (r + 1) * block->stride + from;
                double *to = columns + 3 * APART * angle;
                const double *y = block->y + at;
                const double *weight = how == SHARES ? pass->share + left : block->weight ? block->weight + at : NULL;
                struct moments sums;
                values(&row, pass, angle, i, left, width, sinc, slope);
                if (how == ROBUST) {
                    for (ptrdiff_t j = 0; j < width; j++)
                        g[j] = sinc[j] * sinc[j] * (sinc[j] * sinc[j]);
                    reweigh(pass->robust, angle, g, y, weight, 0, width, (width + PAD - 1) / PAD * PAD, w, wr, rho,
                            out + ALL_SUMS * angle + SUMS);
                    y = wr, weight = w;
                }
                contract_g(sinc, slope, slopes, pass->pitch, how, y, weight, width, all(share), to, &sums);
                contract_h(sinc, slope, slopes, slopes + DECAYS * pass->pitch, pass->pitch, how, y, block->y + next,
                           weight, width, all(share), to + APART, to + 2 * APART, &sums);
                add_row(&sums, u, v, share, out + ALL_SUMS * angle);
            }
        }
        for (ptrdiff_t angle = 0; angle < pass->n_phi; angle++)
            add_columns(pass, columns + 3 * APART * angle, left, width, out + ALL_SUMS * angle);
    }
}

/* Add the sums over a rectangle to out, shape (n_phi, ALL_SUMS): products with the data (of a robust pass: with w1 r),
   sums, upper half of the Gram matrix, and those of robust.h. Returns 0, or 1 if there is no memory. */
EXPORT int NAME(flow_rectangle)(const struct flow_pass *pass, const struct block *block, double *out)
{
    double *buffers = aligned_alloc(64, sizeof(double) * APART * (BUFFERS + 3 * (size_t)pass->n_phi));
    if (!buffers)
        return 1;
    if (pass->robust)
        sweep(pass, block, ROBUST, buffers, out);
    else if (block->weight)
        sweep(pass, block, WEIGHTS, buffers, out);
    else if (pass->share)
        sweep(pass, block, SHARES, buffers, out);
    else
        sweep(pass, block, NONE, buffers, out);
    free(buffers);
    return 0;
}
