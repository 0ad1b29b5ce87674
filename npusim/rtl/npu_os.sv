// The output-stationary side of the matrix unit: sequencer, weights on their way in, array.

module npu_os
  import npu_machine::*;
  import npu_types::*;
(
    input  logic                              clk,
    input  logic                              rst,
    input  logic                              start,
    input  job_t                              job,
    output logic                              weight_read,
    output logic        [               31:0] weight_batch,
    output logic        [               31:0] weight_k,
    output logic        [               31:0] weight_n,
    input  logic        [        COLS*16-1:0] weight_data,
    output logic                              act_read,
    output logic        [               31:0] act_batch,
    output logic        [               31:0] act_m,
    output logic        [               31:0] act_k,
    input  logic        [        ROWS*16-1:0] act_data,
    input  logic        [         ROWS*4-1:0] shift_data,
    output logic                              zero_read,
    output logic        [               31:0] zero_m,
    input  logic signed [               16:0] zero_point,
    output logic                              scale_read,
    output logic        [               31:0] scale_batch,
    output logic        [               31:0] scale_m,
    input  logic        [               31:0] row_scale,
    // below the array: sums of column c, c cycles after the token
    output token_t                            token,
    output logic signed [   ROW_SUM_BITS-1:0] row_sum,
    output logic        [COLS*COLUMN_IN_BITS-1:0] column_in,
    output logic                              overflow
);
  logic [COLUMN_BITS-1:0] columns;
  edge_t feed;
  drain_t drain;
  token_t drain_token;
  npu_os_sequencer sequencer (
      .clk, .rst, .start, .job,
      .weight_read, .batch(weight_batch), .m0(act_m), .n0(weight_n), .k(weight_k), .shift(shift_data[3:0]),
      .zero_read, .zero_m, .scale_read, .scale_batch, .scale_m, .row_scale,
      .columns, .feed, .drain, .token(drain_token)
  );
  assign {act_read, act_batch, act_k} = {weight_read, weight_batch, weight_k};

  // Columns beyond n get weights of 0: an accumulator that nobody reads must not report an overflow.
  logic [COLS*16-1:0] weight;
  for (genvar c = 0; c < COLS; c++) begin : g_weight
    assign weight[c*16+:16] = COLUMN_BITS'(c) < columns ? weight_word(weight_data[c*16+:16], job) : '0;
  end

  npu_os_array array (
      .clk, .job, .feed, .drain, .act_data, .zero_point, .weight, .sums(column_in), .row_sum, .overflow
  );
  npu_delay #(.BITS($bits(token_t)), .DEPTH(ROWS)) token_delay (.clk, .in(drain_token), .out(token));
endmodule
