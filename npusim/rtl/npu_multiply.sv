// One cell's multipliers: the exact sum of a cycle's products.

module npu_multiply
  import npu_types::*;
(
    input  logic        [ ACT_BITS-1:0] act,
    input  logic        [         15:0] weight,
    input  logic                        w_wide,  // the weight has 16 bits
    input  logic                        w_high,  // multiply with its high byte
    output logic signed [CELL_BITS-1:0] sum
);
  wire signed [WEIGHT_LANE_BITS-1:0] low = {!w_wide && weight[7], weight[7:0]};
  wire signed [WEIGHT_LANE_BITS-1:0] high = {weight[15], weight[15:8]};

  logic signed [CELL_BITS-1:0] term[A_LANES][W_LANES];
  logic signed [CELL_BITS-1:0] pair;
  for (genvar i = 0; i < A_LANES; i++) begin : g_act
    for (genvar j = 0; j < W_LANES; j++) begin : g_weight
      wire signed [LANE_BITS-1:0] a = act[i*LANE_BITS+:LANE_BITS];
      wire signed [WEIGHT_LANE_BITS-1:0] w =
          (W_LANES == 1) ? (w_high ? high : low) : (j == 0) ? low : w_wide ? high : '0;
      // A wire of the full width: a product takes the width of its context, and a cast of it would cut it to the operands'.
      wire signed [LANE_BITS+WEIGHT_LANE_BITS-1:0] product = a * w;
      assign term[i][j] = CELL_BITS'(product) <<< (8 * (i + j));
    end
  end
  if (PAIRS) begin : g_pair  // the operand is 0 where there is no second element
    wire signed [PAIR_BITS-1:0] a = act[A_LANES*LANE_BITS+:PAIR_BITS];
    wire signed [3:0] w = weight[11:8];
    wire signed [PAIR_BITS+3:0] product = a * w;
    assign pair = CELL_BITS'(product);
  end else begin : g_single
    assign pair = '0;
  end
  always_comb begin
    sum = pair;
    for (int i = 0; i < A_LANES; i++) for (int j = 0; j < W_LANES; j++) sum += term[i][j];
  end
endmodule
