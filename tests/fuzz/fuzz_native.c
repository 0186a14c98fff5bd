/* libFuzzer harness for the decoders in sdk/formats/_native.c: `make fuzz` builds and runs it on what seeds.py wrote.
 *
 * An input is a Header and the bytes of the parts. Their sizes are those that the decoder asks for, else nearly all
 * inputs would end at the first check; `wrong` names one that is `delta` bytes off. Every part is an allocation of its
 * own, so that the address sanitizer sees accesses outside; `make fuzz` asks for wide red zones, to see far ones too.
 */

#define EDGEKIT_WITHOUT_PYTHON
#include "../../sdk/formats/_native.c"

#include <stdlib.h>

typedef struct {
    uint8_t is_df12, wrong;
    int16_t delta;
    uint16_t columns, first, last, unused;
    uint32_t weights, items; /* items: words of the stream, or escapes */
} Header;

enum { MAX_WEIGHTS = 40000, MAX_ITEMS = 20000 };

static size_t units(size_t count, size_t unit) { return (count + unit - 1) / unit; }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Header h;
    if (size < sizeof h) return 0;
    memcpy(&h, data, sizeof h);
    data += sizeof h;
    size -= sizeof h;
    size_t weights = h.weights % MAX_WEIGHTS, groups = units(weights, GROUP), items = h.items % MAX_ITEMS;
    size_t columns = h.columns, rows = columns ? weights / columns : 0, padded = units(columns, 128) * 128;
    size_t sizes_df11x[6] = {256, 4 * (groups + 1), 2 * LANES * groups, 4 * items, STEP * units(weights, STEP), 0};
    size_t sizes_df12[6] = {rows * padded / 2, rows * padded, 8, 4 * (units(rows, BLOCK) + 1), 4 * items, 2 * items};
    size_t *sizes = h.is_df12 ? sizes_df12 : sizes_df11x;
    if (h.wrong < 6 && (h.delta > 0 || sizes[h.wrong] >= (size_t)-h.delta)) sizes[h.wrong] += (size_t)h.delta;
    Part parts[6];
    uint8_t *memory[6];
    for (int i = 0; i < 6; i++) {
        size_t given = sizes[i] < size ? sizes[i] : size; /* zeros where the input ends */
        memory[i] = calloc(sizes[i] + !sizes[i], 1);
        if (!memory[i]) abort();
        memcpy(memory[i], data, given);
        data += given;
        size -= given;
        parts[i] = (Part){memory[i], sizes[i]};
    }
    uint16_t *target = malloc(2 * weights + !weights);
    if (!target) abort();
    Weights out = {target, weights, columns};
    if (h.is_df12) decode_df12(parts, out, h.first, h.last);
    else decode_df11x(parts, out, h.first, h.last);
    free(target);
    for (int i = 0; i < 6; i++) free(memory[i]);
    return 0;
}
