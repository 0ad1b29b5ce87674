// What lies below one column of the array: accumulators, where the array has none, and the requantizer. The token, the row's
// sum of activations and, where it has one, the row's scale come from the column to the left and go on to the right a cycle
// later.

module npu_column
  import npu_machine::*;
  import npu_types::*;
#(
    parameter int INDEX = 0
) (
    input  logic                             clk,
    input  job_t                             job,
    input  token_t                           token,
    output token_t                           token_out,
    input  logic signed [  ROW_SUM_BITS-1:0] row_sum,
    output logic signed [  ROW_SUM_BITS-1:0] row_sum_out,
    input  logic signed [COLUMN_IN_BITS-1:0] in,         // partial products, or finished sums
    output logic        [              31:0] record_index,
    input  logic        [   RECORD_BITS-1:0] record,
    output logic                             result_next,
    output logic signed [              31:0] result,
    output logic                             overflow
);
  always_ff @(posedge clk) begin
    token_out   <= token;
    row_sum_out <= row_sum;
  end

  wire used = COLUMN_BITS'(INDEX) < token.columns;

  logic signed [ACC_BITS-1:0] sum;
  logic sum_overflow;
  if (OUTPUT_STATIONARY) begin : g_sums
    assign sum = in;
    assign sum_overflow = 1'b0;  // the cells report
  end else begin : g_products
    logic exceeds;
    npu_accumulator accumulator (.clk, .control(token.acc), .psum(in), .sum, .overflow(exceeds));
    assign sum_overflow = token.acc.valid && token.acc.last_phase && used && exceeds;
  end

  // ---- the record: one for all columns or one for each; in the factored modes the shorter one, its bias for later
  wire factored = FACTORED && job.factored;
  scale_t scale;
  logic signed [47:0] bias;
  logic signed [7:0] zero_point;
  always_comb begin
    scale.factored = factored;
    scale.second_multiplier = token.row_multiplier;
    scale.second_shift = token.row_shift;
    scale.late_bias = $signed(record[31:0]);
    if (factored) begin
      {bias, zero_point} = {48'd0, record[63:56]};
      {scale.multiplier, scale.shift} = {(MULTIPLIER_BITS - 1)'(record[46:32]), record[53:48]};
    end else if (job.by_row) begin
      {bias, zero_point} = '0;
      {scale.multiplier, scale.shift} = {(MULTIPLIER_BITS - 1)'(token.row_multiplier), token.row_shift};
    end else begin
      {bias, zero_point} = {record[47:0], record[55:48]};
      {scale.multiplier, scale.shift} = {record[64+:MULTIPLIER_BITS-1], record[61:56]};
    end
  end
  assign record_index = job.by_channel || factored ? token.n0 + 32'(INDEX) : '0;

  logic corrected_used, corrected_overflow;
  npu_requantizer requantizer (
      .clk, .valid(token.finished), .acc(sum), .row_sum, .bias, .zero_point, .scale,
      .fraction_bits(job.fraction_bits), .out_type(job.out_type), .out_zero_point(job.out_zero_point),
      .result_next, .result, .overflow(corrected_overflow)
  );

  // Overflows of a column without weights mean nothing. The correction is checked SUM_DEPTH cycles later.
  npu_delay #(.BITS(1), .DEPTH(SUM_DEPTH)) used_stage (.clk, .in(used), .out(corrected_used));
  assign overflow = sum_overflow || (corrected_used && corrected_overflow);
endmodule
