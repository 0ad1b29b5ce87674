// One activation on its way into the array: extended, less its zero point, shifted left, cut into signed lanes.

module npu_operand
  import npu_machine::*;
  import npu_types::*;
(
    input  job_t                      job,
    input  logic        [       15:0] bits,        // of one row of operand a, beginning at the element
    input  logic signed [       16:0] zero_point,
    input  logic        [        3:0] shift,       // of the element, and of its successor where it makes a pair
    input  logic                      first,       // the element takes part, else it is 0
    input  logic                      second,      // so does its successor
    input  logic                      high,        // where a 16-bit element takes two cycles: the high byte's
    output logic        [ACT_BITS-1:0] act
);
  wire wide = job.a_type == I16 || job.a_type == U16;
  wire signed [16:0] zero = FACTORED && job.factored ? zero_point : '0;
  wire [3:0] left = INPUT_SHIFT && job.shifted ? shift : '0;

  logic signed [16:0] value;
  always_comb begin
    case (job.a_type)
      I8: value = 17'($signed(bits[7:0]));
      I16: value = 17'($signed(bits));
      U16: value = {1'b0, bits};
      U4: value = NARROWEST_ACTIVATION_BITS <= 4 ? {13'd0, bits[3:0]} : {9'd0, bits[7:0]};
      U6: value = NARROWEST_ACTIVATION_BITS <= 6 ? {11'd0, bits[5:0]} : {9'd0, bits[7:0]};
      default: value = {9'd0, bits[7:0]};
    endcase
  end
  wire signed [16:0] x = value - zero;
  wire signed [LANE_BITS-1:0] narrow = LANE_BITS'(x) <<< left[1:0];

  wire [LANE_BITS-1:0] low_lane = wide ? LANE_BITS'({1'b0, x[7:0]}) : narrow;
  wire [LANE_BITS-1:0] high_lane = LANE_BITS'($signed(x[16:8]));
  assign act[LANE_BITS-1:0] = !first ? '0 : high ? high_lane : low_lane;
  if (A_LANES == 2) begin : g_high
    assign act[LANE_BITS+:LANE_BITS] = first && wide ? high_lane : '0;
  end
  if (PAIRS) begin : g_pair
    wire signed [PAIR_BITS-1:0] other = PAIR_BITS'($signed({1'b0, bits[7:4]})) - PAIR_BITS'(zero);
    assign act[A_LANES*LANE_BITS+:PAIR_BITS] = second ? other <<< left[3:2] : '0;
  end else begin : g_single
    wire unused = &{second, left[3:2]};
  end
endmodule
