// One cell of the row-sum column: adds up activations, for the zero point of asymmetric weights.
//
// It shares the left edge's wires with the array's column 0, so that a row's sum of activations and column 0's sum of
// products come out below in the same cycle. A row that takes several cycles shows each byte once with the weights' low
// byte; the cycles of the weights' high byte do not count.

module npu_row_sum_cell
  import npu_types::*;
(
    input  logic                            clk,
    input  logic                            w_high,
    input  logic        [     ACT_BITS-1:0] act,
    input  logic signed [SUM_PSUM_BITS-1:0] sum_in,
    output logic signed [SUM_PSUM_BITS-1:0] sum_out
);
  logic signed [SUM_PSUM_BITS-1:0] sum;
  always_comb begin
    sum = sum_in;
    for (int i = 0; i < A_LANES; i++) begin
      if (!w_high) sum += SUM_PSUM_BITS'($signed(act[i*LANE_BITS+:LANE_BITS])) <<< (8 * i);
    end
  end
  always_ff @(posedge clk) sum_out <= sum;
endmodule
