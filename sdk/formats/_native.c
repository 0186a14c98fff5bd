/* Decoders of df11x and df12 for boards: `edgekit.formats._native`, optional, of Python's stable ABI.
 *
 * df11x.py and df12.py specify the layouts and define, in NumPy, what comes out. Both functions decode a range (groups
 * of df11x, rows of df12) into the whole tensor's buffer without the GIL, so that threads can share one tensor.
 *
 * Nothing here trusts its caller. Sizes are checked before the first read; an offset that comes out of a buffer is read
 * once into a local, checked and then used, so a buffer that changes meanwhile cannot lead outside either. A lane of
 * df11x begins inside its group and may read any codes from there: the group is copied into a window that is longer by
 * what a lane can read at most, and the loop over its codes needs no check.
 */

#ifndef EDGEKIT_WITHOUT_PYTHON /* the fuzzer in tests/fuzz includes this file for its decoders alone */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#endif

#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the parts are little-endian: on this machine edgekit decodes with NumPy"
#endif

#if defined(__GNUC__) && defined(__x86_64__)
#include <immintrin.h>
#define TARGET(features) __attribute__((target(features)))
#define HAS(feature) __builtin_cpu_supports(feature)
#elif defined(__GNUC__) && defined(__aarch64__)
#include <arm_neon.h>
#define TARGET(features)
#define HAS(feature) 1
#endif

#if defined(TARGET) && defined(__has_builtin) /* gcc before 12 has no shuffles: the plain loop decodes df12 */
#if __has_builtin(__builtin_shufflevector)
#define VECTORS
#endif
#endif

#ifdef _MSC_VER
#include <stdlib.h>
#define ALWAYS_INLINE __forceinline
#define SWAP64 _byteswap_uint64
#else
#define ALWAYS_INLINE inline __attribute__((always_inline))
#define SWAP64 __builtin_bswap64
#endif

typedef struct {
    const uint8_t *data;
    size_t size; /* bytes */
} Part;

typedef struct {
    uint16_t *data;
    size_t size, columns; /* weights, and those of a row; df11x has no rows */
} Weights;

typedef const char *Error; /* what is wrong, NULL when nothing is */

static uint16_t load16(const uint8_t *from) { uint16_t value; memcpy(&value, from, 2); return value; }
static uint32_t load32(const uint8_t *from) { uint32_t value; memcpy(&value, from, 4); return value; }

static uint64_t load64(const uint8_t *from) { uint64_t value; memcpy(&value, from, 8); return value; }

/* ---- df11x ---- */

enum {
    LANES = 128,
    UNIT = 4, /* bits: lanes begin at multiples of it */
    TURN = 4, /* consecutive weights a lane decodes before it is the next lane's turn */
    STEP = LANES * TURN,
    GROUP = 32 * STEP,
    LIMIT = 11, /* bits of a code */
    ENTRIES = 1 << LIMIT,
    ABREAST = 4, /* lanes in registers at once: a code waits for the one before it, other lanes fill the gap */
    LANE_BITS = GROUP / LANES * LIMIT,
    GROUP_WORDS = LANES * LANE_BITS / 32,
    AHEAD = LANE_BITS / 8 + 8 /* bytes behind a group: a lane begins inside, what it reads is bounded by its length */
};

/* By the next 11 bits of the stream: the exponent where a bf16 has it, and in the lowest bits its code's length. */
static Error build_table(Part lengths, uint16_t *table)
{
    if (lengths.size != 256) return "lengths must be 256 bytes";
    uint32_t filled = 0;
    for (uint32_t length = 1; length <= LIMIT; length++) {
        uint32_t span = 1u << (LIMIT - length);
        for (uint32_t symbol = 0; symbol < 256; symbol++) {
            if (lengths.data[symbol] != length) continue;
            if (filled + span > ENTRIES) return "lengths is no prefix code";
            for (uint32_t end = filled + span; filled < end; filled++) table[filled] = (uint16_t)(symbol << 7 | length);
        }
    }
    int lone = filled == ENTRIES / 2 && (table[0] & 15) == 1; /* an exponent whatever the bit */
    if (lone) memcpy(table + filled, table, filled * sizeof *table);
    return lone || filled == ENTRIES ? NULL : "lengths is no complete prefix code";
}

/* The next four exponents of every lane, in the order of the weights; `position` moves on. */
static ALWAYS_INLINE void decode_step(const uint8_t *window, const uint16_t *table, uint32_t *position, uint16_t *into)
{
    for (int lane = 0; lane < LANES; lane += ABREAST) {
        uint64_t bits[ABREAST];
        uint32_t used[ABREAST] = {0};
        for (int a = 0; a < ABREAST; a++) { /* at least 57 bits, and four codes take at most 44 */
            uint32_t at = position[lane + a];
            bits[a] = SWAP64(load64(window + at / 8)) << (at % 8);
        }
        for (int turn = 0; turn < TURN; turn++) {
            for (int a = 0; a < ABREAST; a++) {
                uint32_t entry = table[bits[a] >> (64 - LIMIT)];
                into[(lane + a) * TURN + turn] = (uint16_t)entry;
                bits[a] <<= entry & 63; /* bits 4 and 5 are never set, and 6 bits are what a shift looks at anyway */
                used[a] += entry;
            }
        }
        for (int a = 0; a < ABREAST; a++) position[lane + a] += used[a] & 127;
    }
}

typedef struct {
    uint8_t window[4 * GROUP_WORDS + AHEAD]; /* its stream as bytes in the order of its bits, zeros behind */
    uint32_t position[LANES];                /* of each lane's next code, in bits of the window */
    const uint16_t *table;
    const uint8_t *sm;
    uint16_t *out;
    size_t count; /* weights */
} Group;

static ALWAYS_INLINE void decode_steps(Group *g)
{
    for (size_t done = 0; done < g->count; done += STEP) {
        uint16_t step[STEP], *out = g->out + done;
        const uint8_t *sm = g->sm + done;
        decode_step(g->window, g->table, g->position, step);
        size_t weights = g->count - done < STEP ? g->count - done : STEP;
        for (size_t i = 0; i < weights; i++)
            out[i] = (uint16_t)((step[i] & 0x7f80) | (sm[i] & 0x80) << 8 | (sm[i] & 0x7f));
    }
}

#if defined(TARGET) && defined(__x86_64__)
TARGET("avx2,bmi2") static void decode_steps_avx2(Group *g) { decode_steps(g); } /* BMI2 shifts by any register */
#endif

typedef void StepDecoder(Group *);

static StepDecoder *step_decoder(void)
{
#if defined(TARGET) && defined(__x86_64__)
    if (HAS("avx2") && HAS("bmi2")) return decode_steps_avx2;
#endif
    return decode_steps;
}

static Error open_window(Part stream, uint32_t first, uint32_t last, uint8_t *window)
{
    if (first > last || last > stream.size / 4) return "group_off leads outside stream";
    size_t words = last - first;
    if (words > GROUP_WORDS) return "group_off has a group that is longer than its codes can be";
    for (size_t i = 0; i < words; i++) {
        uint32_t word = load32(stream.data + 4 * (first + i));
        for (int byte = 0; byte < 4; byte++) window[4 * i + byte] = (uint8_t)(word >> (24 - 8 * byte));
    }
    memset(window + 4 * words, 0, AHEAD);
    return NULL;
}

static Error decode_group(StepDecoder *decode, Part stream, const uint8_t *group_off, const uint8_t *lane_off, Group *g)
{
    uint32_t first = load32(group_off), last = load32(group_off + 4), end = 32 * (last - first), start[LANES];
    Error error = open_window(stream, first, last, g->window);
    if (error) return error;
    for (int lane = 0; lane < LANES; lane++) {
        start[lane] = g->position[lane] = UNIT * (uint32_t)load16(lane_off + 2 * lane);
        if (start[lane] > end) return "lane_off leads out of its group";
    }
    decode(g);
    for (int lane = 0; lane < LANES; lane++) {
        int is_last = lane == LANES - 1;
        uint32_t unit = is_last ? 32 : UNIT, next = is_last ? end : start[lane + 1];
        uint32_t reached = (g->position[lane] + unit - 1) / unit * unit;
        if (reached != next) return "a lane does not end where the next one begins";
    }
    return NULL;
}

/* `parts`: lengths, group_off, lane_off, stream, sm. The range is one of groups. */
static Error decode_df11x(const Part *parts, Weights out, size_t first_group, size_t last_group)
{
    Part lengths = parts[0], group_off = parts[1], lane_off = parts[2], stream = parts[3], sm = parts[4];
    uint64_t groups = out.size / GROUP + (out.size % GROUP != 0), steps = out.size / STEP + (out.size % STEP != 0);
    if (group_off.size != 4 * (groups + 1)) return "group_off has not one entry more than there are groups";
    if (lane_off.size != 2 * LANES * groups) return "lane_off has not 128 entries for each group";
    if (sm.size != STEP * steps) return "sm has not 512 bytes for each step";
    if (first_group > last_group || last_group > groups) return "there are no such groups";
    uint16_t table[ENTRIES];
    Error error = build_table(lengths, table);
    StepDecoder *decode = step_decoder();
    for (size_t i = first_group; i < last_group && !error; i++) {
        size_t done = i * GROUP;
        Group g;
        g.table = table;
        g.sm = sm.data + done;
        g.out = out.data + done;
        g.count = out.size - done < GROUP ? out.size - done : GROUP;
        error = decode_group(decode, stream, group_off.data + 4 * i, lane_off.data + 2 * LANES * i, &g);
    }
    return error;
}

/* ---- df12 ---- */

enum { MAX_COLUMNS = (1 << 24) - 1, BLOCK = 16 /* rows that share a list of escapes */, MAX_TILE = 8 * 128 };

/* One tile of `width` words: weight i of word j is column i * width + j. */
static void decode_tile_plain(const uint8_t *hi, const uint8_t *lo, const uint8_t *pal, size_t width, uint16_t *tile)
{
    static const uint8_t sign_nibble[8] = {1, 3, 5, 7, 0, 2, 4, 6};
    for (size_t j = 0; j < width; j++) {
        uint32_t word = load32(hi + 4 * j);
        for (size_t i = 0; i < 8; i++) {
            uint32_t sign = word >> (4 * sign_nibble[i] + 3) & 1, high = sign << 7 | pal[word >> (4 * i) & 7];
            tile[i * width + j] = (uint16_t)(high << 8 | lo[8 * j + i]);
        }
    }
}

#ifdef VECTORS
typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef uint16_t Halves __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(16)));

/* The elements of a and b in turns, beginning with a[k]. */
#define ZIP8(a, b, k) __builtin_shufflevector(a, b, k, 16 + k, k + 1, 17 + k, k + 2, 18 + k, k + 3, 19 + k, \
                                              k + 4, 20 + k, k + 5, 21 + k, k + 6, 22 + k, k + 7, 23 + k)
#define ZIP16(a, b, k) __builtin_shufflevector(a, b, k, 8 + k, k + 1, 9 + k, k + 2, 10 + k, k + 3, 11 + k)
#define ZIP32(a, b, k) __builtin_shufflevector(a, b, k, 4 + k, k + 1, 5 + k)

TARGET("ssse3") static ALWAYS_INLINE Bytes look_up(Bytes table, Bytes index) /* index: 0 to 15 */
{
#ifdef __x86_64__
    return (Bytes)_mm_shuffle_epi8((__m128i)table, (__m128i)index);
#else
    return (Bytes)vqtbl1q_u8((uint8x16_t)table, (uint8x16_t)index);
#endif
}

/* Four words -> the bf16 patterns of each word's eight weights. */
TARGET("ssse3") static ALWAYS_INLINE void decode_four(const uint8_t *hi, const uint8_t *lo, Bytes pal, Halves *words)
{
    Bytes code, low[2];
    memcpy(&code, hi, sizeof code);
    memcpy(low, lo, sizeof low);
    Bytes even = look_up(pal, code & 7), odd = look_up(pal, code >> 4 & 7);
    Words signs03 = (Words)(code & 0x80), signs47 = (Words)(code << 4 & 0x80);
    Bytes first = ZIP8(even, odd, 0) | (Bytes)ZIP32(signs03, signs47, 0);
    Bytes second = ZIP8(even, odd, 8) | (Bytes)ZIP32(signs03, signs47, 2);
    words[0] = (Halves)ZIP8(low[0], first, 0);
    words[1] = (Halves)ZIP8(low[0], first, 8);
    words[2] = (Halves)ZIP8(low[1], second, 0);
    words[3] = (Halves)ZIP8(low[1], second, 8);
}

TARGET("ssse3")
static void decode_tile_vectors(const uint8_t *hi, const uint8_t *lo, const uint8_t *pal, size_t width, uint16_t *tile)
{
    Bytes table;
    memcpy(&table, pal, sizeof table);
    for (size_t j = 0; j < width; j += 8) {
        Halves rows[8], zipped[8];
        decode_four(hi + 4 * j, lo + 8 * j, table, rows);
        decode_four(hi + 4 * j + 16, lo + 8 * j + 32, table, rows + 4);
        for (int round = 0; round < 3; round++) { /* three perfect shuffles transpose: eight runs of weight i */
            for (int i = 0; i < 4; i++) {
                zipped[2 * i] = ZIP16(rows[i], rows[i + 4], 0);
                zipped[2 * i + 1] = ZIP16(rows[i], rows[i + 4], 4);
            }
            memcpy(rows, zipped, sizeof rows);
        }
        for (int i = 0; i < 8; i++) memcpy(tile + i * width + j, &rows[i], sizeof *rows);
    }
}
#endif

typedef void TileDecoder(const uint8_t *hi, const uint8_t *lo, const uint8_t *pal, size_t width, uint16_t *tile);

static TileDecoder *tile_decoder(void)
{
#ifdef VECTORS
    if (HAS("ssse3")) return decode_tile_vectors;
#endif
    return decode_tile_plain;
}

/* Put the escapes of a block of 16 rows into their places. */
static Error patch(Part esc_ptr, Part esc_pos, Part esc_val, Weights out, size_t block)
{
    uint32_t first = load32(esc_ptr.data + 4 * block), last = load32(esc_ptr.data + 4 * block + 4);
    if (first > last || last > esc_val.size / 2) return "esc_ptr leads outside the escapes";
    for (size_t i = first; i < last; i++) {
        uint32_t position = load32(esc_pos.data + 4 * i);
        size_t row = position >> 24, column = position & MAX_COLUMNS;
        size_t weight = (block * BLOCK + row) * out.columns + column;
        if (row >= BLOCK || column >= out.columns || weight >= out.size) return "an escape lies outside the matrix";
        if (out.data[weight]) return "the matrix is not zero under an escape";
        out.data[weight] = load16(esc_val.data + 2 * i);
    }
    return NULL;
}

/* `parts`: hi, lo, pal, esc_ptr, esc_pos, esc_val. The range is one of rows. */
static Error decode_df12(const Part *parts, Weights out, size_t first_row, size_t last_row)
{
    Part hi = parts[0], lo = parts[1], pal = parts[2], esc_ptr = parts[3], esc_pos = parts[4], esc_val = parts[5];
    size_t columns = out.columns;
    if (columns < 1 || columns > MAX_COLUMNS) return "a row has no weights, or 2**24 and more";
    if (out.size % columns) return "out does not end with a row";
    uint64_t rows = out.size / columns, blocks = (rows + BLOCK - 1) / BLOCK, padded = (columns + 127) / 128 * 128;
    if (lo.size != rows * padded || hi.size != rows * padded / 2) return "hi or lo is not of N x Kp / 8 words";
    if (pal.size != 8) return "pal must be 8 bytes";
    if (esc_ptr.size != 4 * (blocks + 1)) return "esc_ptr has not one entry more than there are blocks";
    if (esc_val.size % 2 || esc_pos.size != 2 * esc_val.size) return "esc_pos and esc_val are not of one length";
    if (first_row > last_row || last_row > rows) return "there are no such rows";
    if (first_row % BLOCK || (last_row % BLOCK && last_row != rows)) return "a range of rows ends inside a block of 16";
    size_t width = padded % 1024 == 0 ? 128 : padded % 512 == 0 ? 64 : padded % 256 == 0 ? 32 : 16;
    uint8_t palette[16] = {0};
    memcpy(palette, pal.data, 8);
    TileDecoder *decode = tile_decoder();
    for (size_t row = first_row; row < last_row; row++) {
        for (size_t column = 0; column < columns; column += 8 * width) {
            uint16_t tile[MAX_TILE], *into = out.data + row * columns + column;
            size_t left = columns - column, at = row * padded + column;
            decode(hi.data + at / 2, lo.data + at, palette, width, left < 8 * width ? tile : into);
            if (left < 8 * width) memcpy(into, tile, left * sizeof *tile);
        }
    }
    Error error = NULL;
    for (size_t row = first_row; row < last_row && !error; row += BLOCK)
        error = patch(esc_ptr, esc_pos, esc_val, out, row / BLOCK);
    return error;
}

/* ---- Python ---- */

#ifndef EDGEKIT_WITHOUT_PYTHON

typedef Error Decoder(const Part *parts, Weights out, size_t first, size_t last);

/* Arguments: out, columns, first, last, and the parts. None, or a ValueError that says what is wrong. */
static PyObject *call(Decoder *decode, PyObject *args, const char *format, int count)
{
    Py_buffer target, b[6];
    Py_ssize_t columns, first, last;
    if (!PyArg_ParseTuple(args, format, &target, &columns, &first, &last, b, b + 1, b + 2, b + 3, b + 4, b + 5))
        return NULL;
    Weights out = {target.buf, (size_t)target.len / 2, (size_t)columns};
    Part parts[6];
    for (int i = 0; i < count; i++) parts[i] = (Part){b[i].buf, (size_t)b[i].len};
    Error error = NULL;
    if ((uintptr_t)target.buf % 2 || target.len % 2) error = "out must be of uint16 and aligned";
    if (columns < 0 || first < 0 || last < 0) error = "sizes and ranges cannot be negative";
    if (!error) {
        Py_BEGIN_ALLOW_THREADS
        error = decode(parts, out, (size_t)first, (size_t)last);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&target);
    for (int i = 0; i < count; i++) PyBuffer_Release(&b[i]);
    if (!error) Py_RETURN_NONE;
    PyErr_SetString(PyExc_ValueError, error);
    return NULL;
}

static PyObject *py_decode_df11x(PyObject *module, PyObject *args)
{
    (void)module;
    return call(decode_df11x, args, "w*nnny*y*y*y*y*", 5);
}

static PyObject *py_decode_df12(PyObject *module, PyObject *args)
{
    (void)module;
    return call(decode_df12, args, "w*nnny*y*y*y*y*y*", 6);
}

static PyMethodDef methods[] = {
    {"decode_df11x", py_decode_df11x, METH_VARARGS, "out, columns, first_group, last_group, *parts"},
    {"decode_df12", py_decode_df12, METH_VARARGS, "out, columns, first_row, last_row, *parts"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_native", .m_methods = methods};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }

#endif
