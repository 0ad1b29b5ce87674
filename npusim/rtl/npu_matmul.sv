// The matrix unit: one MATMUL at a time, from operands in the SRAM to requantized rows for the SRAM.
//
// Outside of it: addresses (ports speak in batch, row and element numbers) and the memories. Every read port gives its data
// in the cycle in which it is asked; reads are known in advance, so a memory with latency is asked that much earlier.
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
    input  logic signed [        31:0] out_zero_point,
    // weights: element (batch, weight_k, weight_n + c) in lane c
    output logic                       weight_read,
    output logic        [        31:0] weight_batch,
    output logic        [        31:0] weight_k,
    output logic        [        31:0] weight_n,
    input  logic        [ COLS*16-1:0] weight_data,
    // activations: element (batch, act_m, act_k + r) in lane r; and the row's record in row mode
    output logic                       act_read,
    output logic        [        31:0] act_batch,
    output logic        [        31:0] act_m,
    output logic        [        31:0] act_k,
    input  logic        [ ROWS*16-1:0] act_data,
    input  logic        [        31:0] row_record,
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
  job_t job, start_job;
  stream_t stream;
  token_t feed_token;
  logic [31:0] depth;
  logic act_active, act_high;

  assign start_job = '{
      m: m, k: k, n: n, batches: batches,
      a_type: a_type, b_type: b_type, out_type: out_type,
      by_channel: by_channel, by_row: by_row, out_zero_point: out_zero_point
  };
  npu_sequencer sequencer (
      .clk, .rst, .start, .start_job, .job,
      .weight_read, .weight_batch, .weight_k, .weight_n,
      .act_read, .act_batch, .act_m, .act_k,
      .depth, .act_active, .act_high, .stream, .token(feed_token)
  );

  // ---- activations as signed lanes; rows beyond k and idle phases give 0, whatever the port shows
  wire signed_low = job.a_type == I8, wide_a = job.a_type == I16;
  logic [ROWS*ACT_BITS-1:0] act;
  for (genvar r = 0; r < ROWS; r++) begin : g_act
    wire [15:0] element = act_data[r*16+:16];
    wire [LANE_BITS-1:0] low = {signed_low && element[7], element[7:0]};
    wire [LANE_BITS-1:0] high = {element[15], element[15:8]};
    wire used = act_active && 32'(r) < depth;
    assign act[r*ACT_BITS+:LANE_BITS] = !used ? '0 : act_high ? high : low;
    if (A_LANES == 2) begin : g_high
      assign act[r*ACT_BITS+LANE_BITS+:LANE_BITS] = used && wide_a ? high : '0;
    end
  end

  logic [COLS*PSUM_BITS-1:0] psum;
  logic signed [SUM_PSUM_BITS-1:0] sum_psum;
  npu_array array (.clk, .stream, .act, .weight(weight_data), .psum, .row_sum(sum_psum));

  // ---- the token meets its sums ROWS cycles later, at the row-sum column and column 0
  token_t full_token, token;
  always_comb begin
    full_token = feed_token;
    full_token.row_multiplier = row_record[14:0];
    full_token.row_shift = row_record[21:16];
  end
  npu_delay #(.BITS($bits(token_t)), .DEPTH(ROWS)) token_delay (.clk, .in(full_token), .out(token));

  logic signed [ROW_SUM_BITS-1:0] row_sum;
  if (ROW_SUM_COLUMN) begin : g_row_sum
    npu_accumulator #(
        .IN_BITS(SUM_PSUM_BITS), .PART_BITS(ROW_SUM_BITS), .BITS(ROW_SUM_BITS), .MODE(WRAP)  // wide enough never to wrap
    ) accumulator (.clk, .token, .psum(sum_psum), .sum(row_sum), .overflow());
  end else begin : g_no_row_sum
    wire unused = &sum_psum;
    assign row_sum = '0;
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
        .psum($signed(psum[c*PSUM_BITS+:PSUM_BITS])),
        .record_index(record_index[c*32+:32]), .record(record_data[c*RECORD_BITS+:RECORD_BITS]),
        .result_next, .result, .overflow(overflow[c])
    );
    npu_delay #(.BITS(32), .DEPTH(COLS - 1 - c)) align (.clk, .in(result), .out(out_data[c*32+:32]));
  end

  // ---- end of the instruction, and which result comes out
  wire token_t last_token = g_column[COLS-1].token_in;
  wire valid_next = g_column[COLS-1].result_next;
  logic finishing;  // the last result is in its register at the end of this cycle
  npu_delay #(.BITS(1), .DEPTH(REQUANT_LATENCY - 1)) last_delay (.clk, .in(last_token.last), .out(finishing));

  logic busy, trapped;
  assign ready = !busy || finishing;
  wire trap_now = OVERFLOW != SATURATE && OVERFLOW != WRAP && (trapped || (|overflow));

  logic [31:0] batch, m0, n0, row;
  wire [31:0] rows_left = job.m - m0;
  wire last_row = row + 1 == rows_left || row + 1 == 32'(ACC_ROWS);
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
