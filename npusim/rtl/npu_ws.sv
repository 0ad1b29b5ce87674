// The weight-stationary side of the matrix unit: sequencer, operands on their way in, array, row sums.

module npu_ws
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
    input  logic signed [               16:0] zero_point,  // of row act_m
    input  logic        [               31:0] row_scale,   // of row act_m
    // below the array: sums of column c, c cycles after the token
    output token_t                            token,
    output logic signed [   ROW_SUM_BITS-1:0] row_sum,
    output logic        [COLS*COLUMN_IN_BITS-1:0] column_in
);
  stream_t stream;
  token_t feed_token;
  logic [31:0] depth;
  logic act_active, act_high;
  npu_ws_sequencer sequencer (
      .clk, .rst, .start, .job,
      .weight_read, .weight_batch, .weight_k, .weight_n,
      .act_read, .act_batch, .act_m, .act_k, .row_scale,
      .depth, .act_active, .act_high, .stream, .token(feed_token)
  );

  // ---- the port shows the row's bits from element act_k on. Elements beyond k are 0 whatever it shows, after the zero
  // point has been subtracted; so are idle phases.
  wire pair = paired(job);
  logic [ROWS*ACT_BITS-1:0] act;
  for (genvar r = 0; r < ROWS; r++) begin : g_act
    logic [15:0] bits;
    always_comb begin
      bits = {8'd0, act_data[8*r+:8]};
      if (job.a_type == I16 || job.a_type == U16) bits = act_data[16*r+:16];
      if (NARROWEST_ACTIVATION_BITS <= 6 && job.a_type == U6) bits = {10'd0, act_data[6*r+:6]};
      if (NARROWEST_ACTIVATION_BITS <= 4 && job.a_type == U4 && !pair) bits = {12'd0, act_data[4*r+:4]};
    end
    npu_operand operand (
        .job, .bits, .zero_point,
        .shift(pair ? shift_data[4*r+:4] : {2'b00, shift_data[2*r+:2]}),
        .first(act_active && (pair ? 32'(2 * r) < depth : 32'(r) < depth)),
        .second(act_active && pair && 32'(2 * r + 1) < depth),
        .high(act_high), .act(act[r*ACT_BITS+:ACT_BITS])
    );
  end
  logic [COLS*16-1:0] weight;
  for (genvar c = 0; c < COLS; c++) begin : g_weight
    assign weight[c*16+:16] = weight_word(weight_data[c*16+:16], job);
  end

  logic signed [SUM_PSUM_BITS-1:0] sum_psum;
  npu_ws_array array (.clk, .stream, .act, .weight, .psum(column_in), .row_sum(sum_psum));

  // ---- the token meets its sums ROWS cycles later, at the row-sum column and column 0
  npu_delay #(.BITS($bits(token_t)), .DEPTH(ROWS)) token_delay (.clk, .in(feed_token), .out(token));

  if (ROW_SUM_COLUMN) begin : g_row_sum
    npu_accumulator #(
        .IN_BITS(SUM_PSUM_BITS), .PART_BITS(ROW_SUM_BITS), .BITS(ROW_SUM_BITS), .MODE(WRAP)  // wide enough never to wrap
    ) accumulator (.clk, .control(token.acc), .psum(sum_psum), .sum(row_sum), .overflow());
  end else begin : g_no_row_sum
    wire unused = &sum_psum;
    assign row_sum = '0;
  end
endmodule
