// The matrix unit: one MATMUL at a time, from operands in the SRAM to requantized rows for the SRAM.
//
// Outside of it: addresses (ports speak in batch, row and element numbers) and the memories. Every read port gives its data
// in the cycle in which it is asked; reads are known in advance, so a memory with latency is asked that much earlier.
// Operands come as they lie in memory, packed or not, cut at the element that was asked for: `bits of a row from element i
// on` are the row's bytes from bit (i * bits per element) on. What follows the row's last element may be anything.
// Reset must last ROWS + COLS + REQUANT_LATENCY cycles: only the sequencer has a reset, the pipelines run empty.

module npu_matmul
  import npu_machine::*;
  import npu_types::*;
(
    input  logic                       clk,
    input  logic                       rst,
    // `start` with the instruction while `ready`; cycle 0 is the cycle after it
    input  logic                       start,
    output logic                       ready,
    input  logic        [        31:0] m,
    input  logic        [        31:0] k,
    input  logic        [        31:0] n,
    input  logic        [        31:0] batches,
    input  logic        [         3:0] a_type,
    input  logic        [         3:0] b_type,
    input  logic        [         3:0] out_type,
    input  logic                       by_channel,     // one record for each channel; else one for all
    input  logic                       by_row,         // one multiplier and shift for each row; no bias, no zero point
    input  logic                       factored,       // factored records; the second scale for all or for each row
    input  logic        [         3:0] fraction_bits,  // in the factored modes
    input  logic                       acc_continue,   // start from the sums in the accumulators
    input  logic                       acc_hold,       // leave the sums there; no results
    input  logic                       shifted,        // activations are shifted left by shift_data
    input  logic signed [        31:0] out_zero_point,
    // weights: lane c has the bits of channel weight_n + c from element weight_k on
    output logic                       weight_read,
    output logic        [        31:0] weight_batch,
    output logic        [        31:0] weight_k,
    output logic        [        31:0] weight_n,
    input  logic        [ COLS*16-1:0] weight_data,
    // activations. Weight-stationary: the bits of row act_m from element act_k on, and two bits of shift for each element
    // from act_k on. Output-stationary: lane r has the bits of row act_m + r from element act_k on; shifts as before.
    output logic                       act_read,
    output logic        [        31:0] act_batch,
    output logic        [        31:0] act_m,
    output logic        [        31:0] act_k,
    input  logic        [ ROWS*16-1:0] act_data,
    input  logic        [  ROWS*4-1:0] shift_data,
    // input zero point of row (act_batch, zero_m), in the factored modes
    output logic                       zero_read,
    output logic        [        31:0] zero_m,
    input  logic signed [        31:0] zero_point,
    // multiplier (low half) and shift of row (scale_batch, scale_m), in row mode and the factored modes
    output logic                       scale_read,
    output logic        [        31:0] scale_batch,
    output logic        [        31:0] scale_m,
    input  logic        [        31:0] row_scale,
    // requantization records, one bank of the parameter memory below each column
    output logic        [ COLS*32-1:0] record_index,
    input  logic        [COLS*RECORD_BITS-1:0] record_data,
    // results: channels out_n to out_n + COLS - 1 of one row, as far as out_mask says
    output logic                       out_valid,
    output logic        [        31:0] out_batch,
    output logic        [        31:0] out_m,
    output logic        [        31:0] out_n,
    output logic        [    COLS-1:0] out_mask,
    output logic        [ COLS*32-1:0] out_data,
    output logic                       done,           // with the instruction's last result
    output logic                       trap            // with `done`: an accumulator overflowed
);
  job_t job;
  always_ff @(posedge clk) begin
    if (start) begin
      job <= '{
          m: m, k: k, n: n, batches: batches,
          a_type: a_type, b_type: b_type, out_type: out_type,
          by_channel: by_channel, by_row: by_row, factored: factored,
          acc_continue: acc_continue, acc_hold: acc_hold, shifted: shifted,
          fraction_bits: fraction_bits, out_zero_point: out_zero_point
      };
    end
  end

  token_t token;  // at column 0
  logic signed [ROW_SUM_BITS-1:0] row_sum;
  logic [COLS*COLUMN_IN_BITS-1:0] column_in;
  logic cell_overflow;
  if (OUTPUT_STATIONARY) begin : g_os
    npu_os dataflow (
        .clk, .rst, .start, .job,
        .weight_read, .weight_batch, .weight_k, .weight_n, .weight_data,
        .act_read, .act_batch, .act_m, .act_k, .act_data, .shift_data,
        .zero_read, .zero_m, .zero_point(zero_point[16:0]), .scale_read, .scale_batch, .scale_m, .row_scale,
        .token, .row_sum, .column_in, .overflow(cell_overflow)
    );
  end else begin : g_ws
    npu_ws dataflow (
        .clk, .rst, .start, .job,
        .weight_read, .weight_batch, .weight_k, .weight_n, .weight_data,
        .act_read, .act_batch, .act_m, .act_k, .act_data, .shift_data, .zero_point(zero_point[16:0]), .row_scale,
        .token, .row_sum, .column_in
    );
    assign {zero_read, zero_m} = {act_read, act_m};
    assign {scale_read, scale_batch, scale_m} = {act_read, act_batch, act_m};
    assign cell_overflow = 1'b0;  // the columns report
  end

  // ---- columns: each result waits until the last column has its own, so that rows are written whole
  logic [COLS-1:0] overflow;
  for (genvar c = 0; c < COLS; c++) begin : g_column
    token_t token_in, token_out;
    logic signed [ROW_SUM_BITS-1:0] row_sum_in, row_sum_out;
    logic result_next;
    logic signed [31:0] result;
    if (c == 0) begin : g_first
      assign token_in = token;
      assign row_sum_in = row_sum;
    end else begin : g_next
      assign token_in = g_column[c-1].token_out;
      assign row_sum_in = g_column[c-1].row_sum_out;
    end
    npu_column #(.INDEX(c)) column (
        .clk, .job,
        .token(token_in), .token_out, .row_sum(row_sum_in), .row_sum_out,
        .in($signed(column_in[c*COLUMN_IN_BITS+:COLUMN_IN_BITS])),
        .record_index(record_index[c*32+:32]), .record(record_data[c*RECORD_BITS+:RECORD_BITS]),
        .result_next, .result, .overflow(overflow[c])
    );
    npu_delay #(.BITS(32), .DEPTH(COLS - 1 - c)) align (.clk, .in(result), .out(out_data[c*32+:32]));
  end

  // ---- end of the instruction, and which result comes out
  wire token_t last_token = g_column[COLS-1].token_in;
  wire valid_next = g_column[COLS-1].result_next;
  logic last_result, finishing;  // the last result, or the last sum that is held, is in its register after this cycle
  npu_delay #(.BITS(1), .DEPTH(REQUANT_LATENCY - 1)) last_delay (
      .clk, .in(last_token.last && !job.acc_hold), .out(last_result)
  );
  assign finishing = last_result || (last_token.last && job.acc_hold);

  logic busy, trapped;
  assign ready = !busy || finishing;
  wire trap_now = OVERFLOW != SATURATE && OVERFLOW != WRAP && (trapped || cell_overflow || (|overflow));

  logic [31:0] batch, m0, n0, row;
  wire [31:0] rows_left = job.m - m0;
  wire last_row = row + 1 == rows_left || row + 1 == 32'(TILE_ROWS);
  npu_folds #(.FOLD_K(0)) out_tiles (
      .clk, .restart(start), .advance(valid_next && last_row), .job,
      .batch, .m0, .n0, .k0(), .first_k(), .last_k(), .last()
  );

  always_ff @(posedge clk) begin
    if (rst) busy <= 1'b0;
    else if (start) busy <= 1'b1;
    else if (finishing) busy <= 1'b0;

    if (start) row <= '0;
    else if (valid_next) row <= last_row ? '0 : row + 1;
    trapped   <= start ? 1'b0 : trap_now;

    out_valid <= valid_next;
    out_batch <= batch;
    out_m     <= m0 + row;
    out_n     <= n0;
    for (int c = 0; c < COLS; c++) out_mask[c] <= 32'(c) < job.n - n0;
    done      <= finishing;
    trap      <= trap_now;
  end
endmodule
