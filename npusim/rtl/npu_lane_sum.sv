// What the row-sum column adds up in one cycle. A row that takes several cycles shows each byte once with the weights' low
// byte; the cycles of the weights' high byte do not count.

module npu_lane_sum
  import npu_types::*;
(
    input  logic        [     ACT_BITS-1:0] act,
    input  logic                            w_high,
    output logic signed [LANE_SUM_BITS-1:0] sum
);
  logic signed [LANE_SUM_BITS-1:0] pair;
  if (PAIRS) begin : g_pair
    assign pair = LANE_SUM_BITS'($signed(act[A_LANES*LANE_BITS+:PAIR_BITS]));
  end else begin : g_single
    assign pair = '0;
  end
  always_comb begin
    sum = pair;
    for (int i = 0; i < A_LANES; i++) begin
      if (!w_high) sum += LANE_SUM_BITS'($signed(act[i*LANE_BITS+:LANE_BITS])) <<< (8 * i);
    end
  end
endmodule
