// Runs MATMUL instructions on the verilated matrix unit. It plays what lies outside of the unit: the memories, and the
// addresses of batch, row and element numbers. Compiled together with the unit into a shared object; see rtl.py.
//
// Whatever the unit must not look at is random: ports that were not asked, elements beyond k and n, what follows an element
// that is not packed, the instruction's fields when there is no start, and (by +verilator+rand+reset) all registers at
// power-up.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>

#include "Vnpu_matmul.h"
#include "verilated.h"

namespace {

enum { TENSOR, CHANNEL, ROW, FACTORED, FACTORED_ROW };     // rq_mode
constexpr int64_t BITS[] = {8, 8, 16, 32, 4, 4, 6, 6, 16};  // u8, i8, i16, i32, u4, i4, u6, i6, u16
constexpr int64_t RECORD = 12, FACTORED_RECORD = 8;         // bytes of a requantization record
constexpr int64_t ROW_RECORD = 4, SCALARS = 8;              // multiplier and shift of a row; the same behind a zero point
constexpr int LANE_BITS = 16;
constexpr int RESET_CYCLES = ROWS + COLS + REQUANT_LATENCY;

struct Job {  // the same fields in the same order as `Job` in rtl.py
    uint8_t *sram;
    const uint8_t *param;
    int64_t a_addr, a_row, a_b0, a_b1, b_addr, b_k, b_n, b_b0, b_b1, out_addr, out_row, out_b0, out_b1;
    int64_t m, k, n, batch0, batch1, rq_addr, a_dtype, b_dtype, out_dtype, rq_mode, out_zp;
    int64_t acc_continue, acc_hold, shifted, fraction_bits, shift_addr, scalars_addr;
    int64_t start_cycle, done_cycle, values, stray, trap;  // results
};

uint64_t noise_state = 0x9E3779B97F4A7C15;

uint64_t noise() {
    noise_state ^= noise_state << 13;
    noise_state ^= noise_state >> 7;
    return noise_state ^= noise_state << 17;
}

void fill(void *to, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 8) {
        const uint64_t word = noise();
        std::memcpy(static_cast<uint8_t *>(to) + i, &word, bytes - i < 8 ? bytes - i : 8);
    }
}

// Copies `count` bits from bit `from_bit` on to the beginning of `to`; the bits behind them stay as they are.
void copy_bits(uint8_t *to, const uint8_t *from, int64_t from_bit, int64_t count) {
    for (int64_t done = 0; done < count; done += 8) {
        const int64_t here = std::min<int64_t>(8, count - done), at = from_bit + done, low = at % 8;
        int bits = from[at / 8] >> low;
        if (low + here > 8) bits |= from[at / 8 + 1] << (8 - low);
        const int mask = (1 << here) - 1;
        to[done / 8] = (to[done / 8] & ~mask) | (bits & mask);
    }
}

struct Bench {
    VerilatedContext context;
    std::unique_ptr<Vnpu_matmul> top;
    int64_t cycle = 0;

    Bench() {
        context.randReset(2);
        context.randSeed(1);
        top = std::make_unique<Vnpu_matmul>(&context);
        top->clk = 0;
        top->rst = 1;
        top->start = 0;
        clear_ports();
        for (int i = 0; i < RESET_CYCLES; i++) {
            top->eval();
            tick();
        }
        top->rst = 0;
    }

    void clear_ports() {  // the bits of a port's container beyond its width must be 0
        std::memset(&top->act_data, 0, sizeof top->act_data);
        std::memset(&top->weight_data, 0, sizeof top->weight_data);
        std::memset(&top->record_data, 0, sizeof top->record_data);
        std::memset(&top->shift_data, 0, sizeof top->shift_data);
    }

    void tick() {
        top->clk = 1;
        top->eval();
        top->clk = 0;
        cycle++;
    }

    // The bits of one row of operand a from element `k` on, as far as they fill `bits` bits.
    void activations(const Job *job, int64_t row, uint8_t *to, int64_t bits) {
        const int64_t i0 = top->act_batch / job->batch1, i1 = top->act_batch % job->batch1, width = BITS[job->a_dtype];
        if (i0 >= job->batch0 || row >= job->m || top->act_k >= job->k) return;
        const uint8_t *from = job->sram + job->a_addr + i0 * job->a_b0 + i1 * job->a_b1 + row * job->a_row;
        copy_bits(to, from, top->act_k * width, std::min(bits, (job->k - top->act_k) * width));
    }

    void weights(const Job *job, uint8_t *to) {
        const int64_t i0 = top->weight_batch / job->batch1, i1 = top->weight_batch % job->batch1, width = BITS[job->b_dtype];
        const int64_t k = top->weight_k;
        if (i0 >= job->batch0 || k >= job->k) return;
        const uint8_t *from = job->sram + job->b_addr + i0 * job->b_b0 + i1 * job->b_b1;
        for (int64_t n = top->weight_n; n < std::min<int64_t>(job->n, top->weight_n + COLS); n++, to += LANE_BITS / 8) {
            if (width < 8)
                copy_bits(to, from + n * job->b_n, k * width, std::min<int64_t>(LANE_BITS, (job->k - k) * width));
            else
                std::memcpy(to, from + k * job->b_k + n * job->b_n, width / 8);
        }
    }

    // The SCALARS of a row in the factored modes.
    static const uint8_t *scalars(const Job *job, int64_t batch, int64_t row) {
        return job->rq_mode == FACTORED ? job->param + job->scalars_addr
                                        : job->sram + job->scalars_addr + (batch * job->m + row) * SCALARS;
    }

    void serve(const Job *job) {
        uint8_t act[ROWS * LANE_BITS / 8], weight[COLS * LANE_BITS / 8], record[COLS * RECORD], shift[(ROWS + 1) / 2];
        uint8_t zero[4], scale[4];
        fill(act, sizeof act);
        fill(weight, sizeof weight);
        fill(record, sizeof record);
        fill(shift, sizeof shift);
        fill(zero, sizeof zero);
        fill(scale, sizeof scale);
        const bool factored = job && (job->rq_mode == FACTORED || job->rq_mode == FACTORED_ROW);
        if (job && top->act_read) {
            if (OUTPUT_STATIONARY) {
                for (int64_t r = 0; r < ROWS; r++)
                    activations(job, top->act_m + r, act + r * LANE_BITS / 8, LANE_BITS);
            } else {
                activations(job, top->act_m, act, ROWS * LANE_BITS);
            }
            if (job->shifted && top->act_k < job->k)
                copy_bits(shift, job->param + job->shift_addr, top->act_k * 2, std::min<int64_t>(ROWS * 4, (job->k - top->act_k) * 2));
        }
        if (job && top->weight_read) weights(job, weight);
        if (factored && top->zero_read && top->act_batch < job->batch0 * job->batch1 && top->zero_m < job->m)
            std::memcpy(zero, scalars(job, top->act_batch, top->zero_m), 4);
        if (job && top->scale_read && top->scale_batch < job->batch0 * job->batch1 && top->scale_m < job->m) {
            if (factored)
                std::memcpy(scale, scalars(job, top->scale_batch, top->scale_m) + 4, 4);
            else if (job->rq_mode == ROW)
                std::memcpy(scale, job->sram + job->rq_addr + (top->scale_batch * job->m + top->scale_m) * ROW_RECORD, 4);
        }
        if (job && job->rq_mode != ROW) {
            const int64_t size = factored ? FACTORED_RECORD : RECORD, count = job->rq_mode == TENSOR ? 1 : job->n;
            uint32_t index[COLS];
            std::memcpy(index, &top->record_index, sizeof index);
            for (int c = 0; c < COLS; c++)
                if (index[c] < count) std::memcpy(record + c * RECORD, job->param + job->rq_addr + index[c] * size, size);
        }
        std::memcpy(&top->act_data, act, sizeof act);
        std::memcpy(&top->weight_data, weight, sizeof weight);
        std::memcpy(&top->record_data, record, sizeof record);
        if (ROWS % 2) shift[ROWS / 2] &= 15;  // the bits of a port's container beyond its width must be 0
        std::memcpy(&top->shift_data, shift, sizeof shift);
        std::memcpy(&top->zero_point, zero, sizeof zero);
        std::memcpy(&top->row_scale, scale, sizeof scale);
    }

    void instruction(const Job *job) {
        top->start = job != nullptr;
        top->m = job ? job->m : noise();
        top->k = job ? job->k : noise();
        top->n = job ? job->n : noise();
        top->batches = job ? job->batch0 * job->batch1 : noise();
        top->a_type = job ? job->a_dtype : noise() & 15;
        top->b_type = job ? job->b_dtype : noise() & 15;
        top->out_type = job ? job->out_dtype : noise() & 15;
        top->by_channel = job ? job->rq_mode == CHANNEL : noise() & 1;
        top->by_row = job ? job->rq_mode == ROW : noise() & 1;
        top->factored = job ? job->rq_mode == FACTORED || job->rq_mode == FACTORED_ROW : noise() & 1;
        top->fraction_bits = job ? job->fraction_bits : noise() & 15;
        top->acc_continue = job ? job->acc_continue : noise() & 1;
        top->acc_hold = job ? job->acc_hold : noise() & 1;
        top->shifted = job ? job->shifted : noise() & 1;
        top->out_zero_point = job ? job->out_zp : noise();
    }

    void store(Job *job) {
        uint8_t mask[(COLS + 7) / 8];
        uint32_t data[COLS];
        std::memcpy(mask, &top->out_mask, sizeof mask);
        std::memcpy(data, &top->out_data, sizeof data);
        const int64_t i0 = top->out_batch / job->batch1, i1 = top->out_batch % job->batch1;
        for (int64_t c = 0; c < COLS; c++) {
            if (!(mask[c / 8] >> c % 8 & 1)) continue;
            const int64_t n = top->out_n + c;
            if (i0 >= job->batch0 || top->out_m >= job->m || n >= job->n) {
                job->stray++;
                continue;
            }
            const int64_t bits = BITS[job->out_dtype], last = job->n * bits - 1;
            uint8_t *row = job->sram + job->out_addr + i0 * job->out_b0 + i1 * job->out_b1 + top->out_m * job->out_row;
            if (bits >= 8) {
                std::memcpy(row + n * bits / 8, &data[c], bits / 8);
            } else {
                for (int64_t i = 0; i < bits; i++) {
                    uint8_t &byte = row[(n * bits + i) / 8];
                    const int bit = 1 << (n * bits + i) % 8;
                    byte = data[c] >> i & 1 ? byte | bit : byte & ~bit;
                }
                if (n == job->n - 1) row[last / 8] &= (2 << last % 8) - 1;  // what is left over in a row's last byte is 0
            }
            job->values++;
        }
    }
};

}  // namespace

extern "C" {

void *bench_new() { return new Bench; }  // lives as long as the process

// Runs the jobs back to back: each starts as soon as the unit is ready. Returns how many came to their end within `limit`
// cycles. Cycles are counted from power-up; cycle 0 of an instruction is start_cycle + 1.
int64_t bench_run(void *handle, Job *jobs, int64_t count, int64_t limit) {
    Bench &bench = *static_cast<Bench *>(handle);
    Vnpu_matmul &top = *bench.top;
    int64_t started = 0, ended = 0;
    for (const int64_t end = bench.cycle + limit; ended < count && bench.cycle < end;) {
        top.eval();
        bench.serve(started > ended ? &jobs[started - 1] : nullptr);
        Job *next = top.ready && started < count ? &jobs[started] : nullptr;
        bench.instruction(next);
        top.eval();
        if (top.out_valid) bench.store(&jobs[ended]);
        if (top.done) {
            jobs[ended].done_cycle = bench.cycle;
            jobs[ended].trap = top.trap;
            ended++;
        }
        if (next) {
            next->start_cycle = bench.cycle;
            started++;
        }
        bench.tick();
    }
    top.eval();
    return ended;
}
}
