// Runs MATMUL instructions on the verilated matrix unit. It plays what lies outside of the unit: the memories, and the
// addresses of batch, row and element numbers. Compiled together with the unit into a shared object; see rtl.py.
//
// Whatever the unit must not look at is random: ports that were not asked, elements beyond k and n, upper bytes of 8-bit
// elements, the instruction's fields when there is no start, and (by +verilator+rand+reset) all registers at power-up.

#include <cstdint>
#include <cstring>
#include <memory>

#include "Vnpu_matmul.h"
#include "verilated.h"

namespace {

enum { TENSOR, CHANNEL, ROW };                 // rq_mode
constexpr int64_t BYTES[] = {1, 1, 2, 4};      // u8, i8, i16, i32
constexpr int64_t RECORD = 12, ROW_RECORD = 4; // bytes of a requantization record
constexpr int RESET_CYCLES = ROWS + COLS + REQUANT_LATENCY;

struct Job {  // the same fields in the same order as `Job` in rtl.py
    uint8_t *sram;
    const uint8_t *param;
    int64_t a_addr, a_row, a_b0, a_b1, b_addr, b_k, b_n, b_b0, b_b1, out_addr, out_row, out_b0, out_b1;
    int64_t m, k, n, batch0, batch1, rq_addr, a_dtype, b_dtype, out_dtype, rq_mode, out_zp;
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
    }

    void tick() {
        top->clk = 1;
        top->eval();
        top->clk = 0;
        cycle++;
    }

    void serve(const Job *job) {
        uint8_t act[ROWS * 2], weight[COLS * 2], record[COLS * RECORD], row_record[ROW_RECORD];
        fill(act, sizeof act);
        fill(weight, sizeof weight);
        fill(record, sizeof record);
        fill(row_record, sizeof row_record);
        if (job && top->act_read) {
            const int64_t i0 = top->act_batch / job->batch1, i1 = top->act_batch % job->batch1, size = BYTES[job->a_dtype];
            const bool inside = i0 < job->batch0 && top->act_m < job->m;
            const uint8_t *row = job->sram + job->a_addr + i0 * job->a_b0 + i1 * job->a_b1 + top->act_m * job->a_row;
            for (int64_t r = 0; inside && r < ROWS && top->act_k + r < job->k; r++)
                std::memcpy(act + 2 * r, row + (top->act_k + r) * size, size);
            if (inside && job->rq_mode == ROW)
                std::memcpy(row_record, job->sram + job->rq_addr + (top->act_batch * job->m + top->act_m) * ROW_RECORD, ROW_RECORD);
        }
        if (job && top->weight_read && top->weight_k < job->k) {
            const int64_t i0 = top->weight_batch / job->batch1, i1 = top->weight_batch % job->batch1;
            const uint8_t *row = job->sram + job->b_addr + i0 * job->b_b0 + i1 * job->b_b1 + top->weight_k * job->b_k;
            for (int64_t c = 0; i0 < job->batch0 && c < COLS && top->weight_n + c < job->n; c++)
                std::memcpy(weight + 2 * c, row + (top->weight_n + c) * job->b_n, BYTES[job->b_dtype]);
        }
        if (job && job->rq_mode != ROW) {
            uint32_t index[COLS];
            std::memcpy(index, &top->record_index, sizeof index);
            for (int c = 0; c < COLS; c++)
                if (index[c] < (job->rq_mode == CHANNEL ? job->n : 1))
                    std::memcpy(record + c * RECORD, job->param + job->rq_addr + index[c] * RECORD, RECORD);
        }
        std::memcpy(&top->act_data, act, sizeof act);
        std::memcpy(&top->weight_data, weight, sizeof weight);
        std::memcpy(&top->record_data, record, sizeof record);
        std::memcpy(&top->row_record, row_record, sizeof row_record);
    }

    void instruction(const Job *job) {
        top->start = job != nullptr;
        top->m = job ? job->m : noise();
        top->k = job ? job->k : noise();
        top->n = job ? job->n : noise();
        top->batches = job ? job->batch0 * job->batch1 : noise();
        top->a_type = job ? job->a_dtype : noise() & 3;
        top->b_type = job ? job->b_dtype : noise() & 3;
        top->out_type = job ? job->out_dtype : noise() & 3;
        top->by_channel = job ? job->rq_mode == CHANNEL : noise() & 1;
        top->by_row = job ? job->rq_mode == ROW : noise() & 1;
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
            const int64_t size = BYTES[job->out_dtype];
            uint8_t *to = job->sram + job->out_addr + i0 * job->out_b0 + i1 * job->out_b1 + top->out_m * job->out_row + n * size;
            std::memcpy(to, &data[c], size);
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
