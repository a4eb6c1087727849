/* Weights that depend on the residuals: robust losses, and the middle of the sandwich covariance.

   With r = offset + contrast g - y, z = scale r^2 / C^2 and the loss rho(z), the gradient has w1 r, w1 = rho', where
   squares have r, and the Gauss-Newton matrix has weights w2 = rho' + 2 z rho'', kept above a tenth of rho' (Triggs et al.
   2000, eqs. 10-11; as in tessera/lsq/losses.py). The middle of the sandwich has weights (scale w1 r)^2. */
#ifndef TESSERA_ROBUST_H
#define TESSERA_ROBUST_H

#include <math.h>
#include <stddef.h>

#include "lanes.h"

enum loss { SQUARES, SOFT_L1, HUBER, CAUCHY, ARCTAN };

enum { EXTRA = 3 /* sums besides those of the functions: of w2, w1 r, rho */ };

static const double LEAST_CURVATURE = 0.1;

struct robust {
    ptrdiff_t loss, scores;              /* enum loss; whether the weights are those of the sandwich's middle */
    double inverse;                      /* 1/C^2 */
    const double *scale;                 /* (n_phi): 1/sigma^2 */
    const double *contrast, *offset;     /* (n_phi): the offset less one, as y */
};

INLINE void rho_of(enum loss loss, double z, double *rho, double *slope, double *curvature)
{
    double bend;
    switch (loss) {
    case SOFT_L1: {
        const double root = sqrt(1.0 + z);
        *rho = 2.0 * z / (root + 1.0), *slope = 1.0 / root, bend = -0.5 / (root * root * root);
        break;
    }
    case HUBER: {
        const double root = sqrt(z > 1.0 ? z : 1.0);
        *rho = z <= 1.0 ? z : 2.0 * root - 1.0, *slope = 1.0 / root;
        bend = z <= 1.0 ? 0.0 : -0.5 / (root * root * root);
        break;
    }
    case CAUCHY:
        *rho = log1p(z), *slope = 1.0 / (1.0 + z), bend = -*slope * *slope;
        break;
    case ARCTAN:
        *rho = atan(z), *slope = 1.0 / (1.0 + z * z), bend = -2.0 * z * *slope * *slope;
        break;
    default:
        *rho = z, *slope = 1.0, bend = 0.0;
    }
    *curvature = *slope + 2.0 * z * bend;
    if (*curvature < LEAST_CURVATURE * *slope)
        *curvature = LEAST_CURVATURE * *slope;
}

INLINE void reweigh_as(enum loss loss, const struct robust *robust, ptrdiff_t angle, const double *g, const double *y,
                       const double *weight, ptrdiff_t start, ptrdiff_t width, double *w, double *wr, double *rho)
{
    const double contrast = robust->contrast[angle], offset = robust->offset[angle], scale = robust->scale[angle];
    for (ptrdiff_t j = start; j < width; j++) {
        const double own = weight ? weight[j] : 1.0;
        const double at = !weight ? y[j] : own > 0.0 ? y[j] / own : 0.0; /* y comes times its weight */
        const double r = offset + contrast * g[j] - at;
        double slope, curvature;
        rho_of(loss, scale * robust->inverse * own * r * r, rho + j, &slope, &curvature);
        wr[j] = own * slope * r;
        w[j] = robust->scores ? scale * wr[j] * scale * wr[j] : own * curvature;
    }
}

/* Fill w with the weights and wr with w1 r in columns start ... width, both with zeros elsewhere up to padded, and add
   the EXTRA sums. rho is room to work in. */
INLINE void reweigh(const struct robust *robust, ptrdiff_t angle, const double *g, const double *y,
                    const double *weight, ptrdiff_t start, ptrdiff_t width, ptrdiff_t padded, double *w, double *wr,
                    double *rho, double *extra)
{
    for (ptrdiff_t j = 0; j < start; j++)
        w[j] = wr[j] = rho[j] = 0.0;
    for (ptrdiff_t j = width; j < padded; j++)
        w[j] = wr[j] = rho[j] = 0.0;
    switch ((enum loss)robust->loss) {
    case SOFT_L1:
        reweigh_as(SOFT_L1, robust, angle, g, y, weight, start, width, w, wr, rho);
        break;
    case HUBER:
        reweigh_as(HUBER, robust, angle, g, y, weight, start, width, w, wr, rho);
        break;
    case CAUCHY:
        reweigh_as(CAUCHY, robust, angle, g, y, weight, start, width, w, wr, rho);
        break;
    case ARCTAN:
        reweigh_as(ARCTAN, robust, angle, g, y, weight, start, width, w, wr, rho);
        break;
    default:
        reweigh_as(SQUARES, robust, angle, g, y, weight, start, width, w, wr, rho);
    }
    vec weights = {0}, slopes = {0}, costs = {0};
    for (ptrdiff_t j = 0; j < padded; j += LANES)
        weights += load(w + j), slopes += load(wr + j), costs += load(rho + j);
    extra[0] += total(weights), extra[1] += total(slopes), extra[2] += total(costs);
}

#endif
