/* The inner loops of sum_tree.py, which has the same in numpy.

   A tree is an array of levels, the root's block first; level l + 1 has the children of level l, FAN_OUT for each of its
   entries.  Leaves are the entries of the last level. */

#include <math.h>
#include <stdint.h>

#define FAN_OUT 16

/* The block's sum as numpy has it: eight sums side by side, then those in pairs. */
static double sum_of_block(const double *block)
{
    double part[8];
    for (int i = 0; i < 8; i++)
        part[i] = block[i];
    for (int start = 8; start < FAN_OUT; start += 8)
        for (int i = 0; i < 8; i++)
            part[i] += block[start + i];
    return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

/* Write `priorities` into `leaves`, in order, and sum up all that is above them; `touched` is room for `count` blocks. */
void set_leaves(double *const *levels, int64_t num_levels, const int64_t *leaves, const double *priorities,
                int64_t count, int64_t *touched)
{
    double *below = levels[num_levels - 1];
    for (int64_t i = 0; i < count; i++) {
        below[leaves[i]] = priorities[i];
        touched[i] = leaves[i] / FAN_OUT;
    }
    for (int64_t level = num_levels - 2; level >= 0; level--) {
        double *above = levels[level];
        for (int64_t i = 0; i < count; i++) {
            above[touched[i]] = sum_of_block(below + touched[i] * FAN_OUT);
            touched[i] /= FAN_OUT;
        }
        below = above;
    }
}

/* The leaf at each of `points`, which are used up.  Level by level, so that the memory that many points wait for is
   fetched at the same time. */
void find_leaves(double *const *levels, int64_t num_levels, double *points, int64_t count, int64_t *found)
{
    for (int64_t i = 0; i < count; i++)
        found[i] = 0; /* blocks, on the way down */
    for (int64_t level = 0; level < num_levels; level++) {
        const double *next = level + 1 < num_levels ? levels[level + 1] : 0;
        for (int64_t i = 0; i < count; i++) {
            const double *block = levels[level] + found[i] * FAN_OUT;
            double left = points[i];
            int child = 0, last = 0;
            for (; child < FAN_OUT; child++) {
                if (left < block[child])
                    break;
                if (block[child] > 0)
                    last = child;
                left -= block[child];
            }
            if (child == FAN_OUT) { /* by rounding: beyond the end */
                child = last;
                left = nextafter(block[last], 0);
            }
            points[i] = left;
            found[i] = found[i] * FAN_OUT + child;
            if (next) {
                const double *below = next + found[i] * FAN_OUT;
                for (int line = 0; line < FAN_OUT; line += 8)
                    __builtin_prefetch(below + line);
            }
        }
    }
}
