// What lies below one column of the array: accumulators and requantizer. The token, the row's sum of activations and, in row
// mode, the row's multiplier and shift come from the column to the left and go on to the right a cycle later.

module npu_column
  import npu_machine::*;
  import npu_types::*;
#(
    parameter int INDEX = 0
) (
    input  logic                           clk,
    input  job_t                           job,
    input  token_t                         token,
    output token_t                         token_out,
    input  logic signed [ROW_SUM_BITS-1:0] row_sum,
    output logic signed [ROW_SUM_BITS-1:0] row_sum_out,
    input  logic signed [   PSUM_BITS-1:0] psum,
    output logic        [            31:0] record_index,
    input  logic        [ RECORD_BITS-1:0] record,
    output logic                           result_next,
    output logic signed [            31:0] result,
    output logic                           overflow
);
  always_ff @(posedge clk) begin
    token_out   <= token;
    row_sum_out <= row_sum;
  end

  wire used = COLUMN_BITS'(INDEX) < token.columns;
  wire whole = token.valid && token.last_phase;

  logic signed [ACC_BITS-1:0] sum;
  logic sum_overflow, corrected_overflow;
  npu_accumulator accumulator (.clk, .token, .psum, .sum, .overflow(sum_overflow));

  assign record_index = job.by_channel ? token.n0 + 32'(INDEX) : '0;
  wire finished = whole && token.last_fold;
  logic corrected_used;
  npu_requantizer requantizer (
      .clk,
      .valid(finished),
      .acc(sum),
      .row_sum,
      .bias(job.by_row ? '0 : $signed(record[47:0])),
      .zero_point(job.by_row ? '0 : $signed(record[55:48])),
      .multiplier(job.by_row ? (MULTIPLIER_BITS - 1)'(token.row_multiplier) : record[64+:MULTIPLIER_BITS-1]),
      .shift(job.by_row ? token.row_shift : record[61:56]),
      .out_type(job.out_type),
      .out_zero_point(job.out_zero_point),
      .result_next,
      .result,
      .overflow(corrected_overflow)
  );

  // Overflows of a column without weights mean nothing. The correction is checked REQUANT_LATENCY - 3 cycles later.
  npu_delay #(.BITS(1), .DEPTH(REQUANT_LATENCY >= 4 ? REQUANT_LATENCY - 3 : 0)) used_stage (
      .clk, .in(used), .out(corrected_used)
  );
  assign overflow = (whole && used && sum_overflow) || (corrected_used && corrected_overflow);
endmodule
