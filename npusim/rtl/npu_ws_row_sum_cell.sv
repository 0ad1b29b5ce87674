// Weight-stationary: one cell of the row-sum column, which adds up activations for the zero point of asymmetric weights.
//
// It shares the left edge's wires with the array's column 0, so that a row's sum of activations and column 0's sum of
// products come out below in the same cycle.

module npu_ws_row_sum_cell
  import npu_types::*;
(
    input  logic                            clk,
    input  logic                            w_high,
    input  logic        [     ACT_BITS-1:0] act,
    input  logic signed [SUM_PSUM_BITS-1:0] sum_in,
    output logic signed [SUM_PSUM_BITS-1:0] sum_out
);
  logic signed [LANE_SUM_BITS-1:0] lanes;
  npu_lane_sum lane_sum (.act, .w_high, .sum(lanes));
  always_ff @(posedge clk) sum_out <= sum_in + SUM_PSUM_BITS'(lanes);
endmodule
